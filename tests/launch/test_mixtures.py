"""Several --data files: the header says their shares, a stopped run resumes to the same files, mistakes are a line."""

from __future__ import annotations

import json

import pytest

from tests.launch import small
from tests.launch.jobs import ON_RANKINGS, TRAINERS, assert_says, run
from tests.launch.test_resume import stop_at
from tests.reliability.remains import assert_same

MORE = [{**row, "id": str(i), "instruction": f"Say {word}"} for i, (row, word) in enumerate(
    zip(small.INSTRUCTIONS * 2, ("one", "two", "three", "four", "five", "six", "seven"))
)]  # fmt: skip


@pytest.fixture(autouse=True)
def files(here):
    small.write_rows(here / "more.jsonl", MORE)
    answers = {"responses": ["yes", "no", "good"], "ranks": [1, 3, 2]}
    small.write_rows(here / "more_rankings.jsonl", [{**row, **answers} for row in MORE])
    (here / "none.jsonl").write_text("\n")
    return here


def of(job, *weights):
    names = ("rankings.jsonl", "more_rankings.jsonl") if job in ON_RANKINGS else ("prompts.jsonl", "more.jsonl")
    first, second = (f"{name}{weight}" for name, weight in zip(names, weights))
    return {"data": first}, ("--data", second)


@pytest.mark.parametrize("job", TRAINERS)
def test_stopped_mixture_resumes(here, refused, monkeypatch, capfd, job):
    changes, more = of(job, ":3", "")
    changes |= {"epochs": "2", "max-steps": "3", "batch-size": "4", "save-every": "100"}
    if job in ON_RANKINGS:
        changes |= {"eval-data": "rankings.jsonl", "heldout": None}
    if job == "ppo":
        changes |= {"minibatch-size": "4", "ppo-epochs": "1"}
    run(monkeypatch, job, {**changes, "output": "whole"}, *more)
    said = capfd.readouterr().out
    assert "5 records, 75.0% of those drawn, read 1.80 times" in said  # 9 of 12
    assert "7 records, 25.0% of those drawn, read 0.43 times" in said
    assert json.loads((here / "whole" / "config.json").read_text())["settings"]["data"] == [changes["data"], more[1]]
    stop_at(monkeypatch, 2, lambda: run(monkeypatch, job, changes, *more))
    line = refused(job, {**changes, **of(job, ":2", "")[0]}, *more, "--resume")
    assert_says(line, "out was started with other settings (data ", "--override")
    run(monkeypatch, job, changes, *more, "--resume")
    assert_same(here / "out", here / "whole")


def test_one_file_with_a_weight_is_one_file(here, monkeypatch):
    run(monkeypatch, "sft", {"data": "prompts.jsonl", "max-steps": "2", "output": "plain"})
    run(monkeypatch, "sft", {"data": "prompts.jsonl:0.3", "max-steps": "2"})
    plain, weighted = (
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in small.read_rows(path)]
        for path in (here / "plain" / "metrics.jsonl", here / "out" / "metrics.jsonl")
    )
    assert plain == weighted
    assert json.loads((here / "plain" / "config.json").read_text())["settings"]["data"] == "prompts.jsonl"


def test_flags_replace_the_list_of_a_config_file(here, monkeypatch):
    (here / "c.json").write_text(json.dumps({"data": ["absent.jsonl", "more.jsonl:2"]}))
    run(monkeypatch, "sft", {"config": "c.json"})
    assert json.loads((here / "out" / "config.json").read_text())["settings"]["data"] == "prompts.jsonl"
    (here / "c.json").write_text(json.dumps({"data": ["prompts.jsonl", "more.jsonl:2"]}))
    run(monkeypatch, "sft", {"config": "c.json", "data": None, "output": "both"})
    settings = json.loads((here / "both" / "config.json").read_text())["settings"]
    assert settings["data"] == ["prompts.jsonl", "more.jsonl:2"]


@pytest.mark.parametrize(
    ("weights", "more", "words"),
    [
        ((":0", ""), (), ("--data prompts.jsonl:0: the weight is 0", "above 0")),
        (("", ":nan"), (), ("--data more.jsonl:nan: the weight is nan", "finite")),
        (("", ""), ("--data", "./prompts.jsonl:2"), ("--data names ./prompts.jsonl twice",)),
        (("", ""), ("--data", "none.jsonl"), ("none.jsonl holds no records",)),
        (("", ""), ("--data", "absent.jsonl:2"), ("cannot read absent.jsonl: there is no such file",)),
    ],
)
def test_mistake_in_a_mixture_is_one_line(refused, weights, more, words):
    changes, second = of("sft", *weights)
    assert_says(refused("sft", changes, *second, *more), *words)


def test_file_whose_records_are_all_dropped_is_named(here, refused):
    small.write_rows(here / "long.jsonl", [{**MORE[0], "output": "no " * 200}])
    line = refused("sft", {"truncate": "drop"}, "--data", "long.jsonl")
    assert_says(line, "long.jsonl: no record is left", "longer than 64 tokens")


def test_overwrite_keeps_its_input(here, refused, monkeypatch):
    run(monkeypatch, "sft", {})
    small.write_rows(here / "out" / "in.jsonl", MORE)
    assert_says(refused("sft", {}, "--data", "out/in.jsonl:2", "--overwrite"), "--data out/in.jsonl lies in out,")
