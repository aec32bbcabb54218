"""Records with messages through every job: trained, scored, sampled, and a mistake in one line."""

from __future__ import annotations

import json

import pytest

from launch import score
from tests.launch import small
from tests.launch.jobs import ON_RANKINGS, TRAINERS, assert_says, run

TALK = [
    {"role": "user", "content": "Say good morning"}, {"role": "assistant", "content": "Good morning"},
    {"role": "user", "content": "नेपालीमा भन"}, {"role": "assistant", "content": "शुभ प्रभात"},
]  # fmt: skip
LONG = {"max-length": "900", "template": "alpaca", "tokens-per-microbatch": "8192"}


@pytest.fixture(autouse=True)
def files(here):
    system = [{"role": "system", "content": "Be brief."}]
    rows = [{"id": f"c{i}", "messages": [*system[: i % 2], *TALK[: 2 + 2 * (i % 3 > 0)]]} for i in range(6)]
    small.write_rows(here / "talks.jsonl", rows)
    asked = [{**row, "messages": row["messages"][:-1]} for row in rows]
    small.write_rows(here / "asked.jsonl", asked)
    ranked = {"responses": ["yes", "no", "good"], "ranks": [2, 3, 1]}
    small.write_rows(
        here / "ranked.jsonl",
        [{**r, **ranked, "messages": [*r["messages"], *TALK[1:3] * (i // 3)]} for i, r in enumerate(asked)],
    )
    return here


@pytest.mark.parametrize("template", ["plain", "alpaca"])
@pytest.mark.parametrize("job", TRAINERS)
def test_trains(here, monkeypatch, job, template):
    data = "ranked.jsonl" if job in ON_RANKINGS else "asked.jsonl" if job == "ppo" else "talks.jsonl"
    changes = {**LONG, "template": template, "data": data, "max-steps": "2", "batch-size": "2"}
    if job in ("sft", "ppo"):
        changes |= {"eval-data": "talks.jsonl"}
    if job == "sft":
        changes |= {"exact-match": "true"}
    if job == "ppo":
        changes |= {"minibatch-size": "2"}
    run(monkeypatch, job, changes)
    assert (
        len([r for r in small.read_rows(here / "out" / "metrics.jsonl") if any(k.startswith("loss/") for k in r)]) == 2
    )
    if job == "ppo":
        samples = small.read_rows(here / "out" / "samples.jsonl")
        assert any("Good morning</s>" in row["prompt"] and "नेपालीमा" in row["prompt"] for row in samples)


def test_sampled_conversations_are_scored(here, monkeypatch):
    run(monkeypatch, "sample", {"template": "alpaca", "max-length": "900", "data": "asked.jsonl", "num-responses": "2"})
    rows = small.read_rows(here / "out.jsonl")
    asked = small.read_rows(here / "asked.jsonl")
    assert rows[0].keys() == {"id", "instruction", "input", "responses", "finished"}
    assert [row["messages"] for row in rows[1:3]] == [row["messages"] for row in asked[1:3]]
    for reward, name in (("rm", "m.jsonl"), ("engine.reward_functions:noise", "f.jsonl")):
        score.job(["--reward", reward, "--data", "out.jsonl", "--output", name, "--template", "alpaca"])
        assert [{k: v for k, v in row.items() if k != "scores"} for row in small.read_rows(here / name)] == rows
    (here / "bad.jsonl").write_text(json.dumps({**rows[1], "messages": TALK}) + "\n")
    with pytest.raises(Exception, match="bad.jsonl, line 1: field 'messages' ends with the assistant's"):
        score.job(["--reward", "rm", "--data", "bad.jsonl", "--output", "x.jsonl", "--template", "alpaca"])


@pytest.mark.parametrize("job", TRAINERS)
def test_mistake_is_one_line(here, refused, job):
    (here / "bad.jsonl").write_text(
        json.dumps({"messages": [{"role": "tool", "content": "x"}], "responses": []}) + "\n"
    )
    assert_says(refused(job, {"data": "bad.jsonl"}), "bad.jsonl:1: field 'messages[0].role' is 'tool'", "give system")
