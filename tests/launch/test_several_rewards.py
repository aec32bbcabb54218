"""launch/ppo.py with several rewards: header, held-out scores, report, resume's identity, and what it refuses first."""

import json

import pytest

from engine.report.__main__ import main as report
from tests.launch import small
from tests.launch.jobs import assert_says, run

LENGTH = "engine.reward_functions:length(2, 8)"
EXACT = "engine.reward_functions:exact_match"
SHORT = {"max-steps": "2", "batch-size": "4", "minibatch-size": "4", "eval-data": "prompts.jsonl"}


def test_a_run_with_a_model_and_two_functions(here, monkeypatch, capfd):
    changes = {**SHORT, "reward": "rm:0.5", "output": "runs/ne/ppo"}
    run(monkeypatch, "ppo", changes, "--reward", f"{LENGTH}:2", EXACT)
    said, result = capfd.readouterr().out, json.loads((here / "runs" / "ne" / "ppo" / "result.json").read_text())
    assert_says(said, "reward rm", "rm (reads the policy's trunk", "weight 0.5)", f"reward length       {LENGTH} (")
    assert_says(said, "score on held-out prompts, length", "answers in a wrong language")
    heldout = {name: sides["after"][0] for name, sides in result["heldout"].items()}
    scores = 0.5 * heldout["score/rm"] + 2 * heldout["score/length"] + heldout["score/exact_match"]
    assert heldout["score"] == pytest.approx(scores, abs=1e-5)
    assert result["wrong_language"] == heldout["wrong_language"] > 0
    row = json.loads((here / "runs" / "ne" / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    parts = 0.5 * row["rollout/score/rm"] + 2 * row["rollout/score/length"] + row["rollout/score/exact_match"]
    assert row["objective/scores"] == pytest.approx(parts, abs=1e-5)
    card = (here / "runs" / "ne" / "ppo" / "model" / "README.md").read_text()
    assert f"- reward: `rm:0.5, {LENGTH}:2, {EXACT}`" in card
    run(monkeypatch, "ppo", changes, "--reward", f"{LENGTH}:2", EXACT)
    assert "is complete with these settings" in capfd.readouterr().out
    report(["runs/ne", "--output", "page.html"])
    assert "answers in a wrong language on held-out prompts" in (here / "page.html").read_text()


def test_another_list_is_another_run(here, monkeypatch, refused):
    run(monkeypatch, "ppo", {"reward": LENGTH})
    for more in (["--reward", "rm"], []):
        line = refused("ppo", {"reward": f"{LENGTH}:2"}, *more)
        assert_says(line, "out holds another run (reward 'engine", "--overwrite")


def test_one_reward_is_recorded_as_before_there_could_be_several(here, monkeypatch, capfd):
    run(monkeypatch, "ppo", {})
    assert json.loads((here / "out" / "config.json").read_text())["settings"]["reward"] == "rm"
    run(monkeypatch, "ppo", {})
    assert "is complete with these settings" in capfd.readouterr().out


def test_overwriting_keeps_the_rewards_of_the_list(here, monkeypatch, refused):
    small.make_reward_model(here / "one", here / "m")
    run(monkeypatch, "ppo", {"reward": LENGTH})
    (here / "out" / "inner").mkdir()
    line = refused("ppo", {"reward": LENGTH}, "--reward", "out/model:0.5", "--overwrite")
    assert_says(line, "--reward out/model lies in out, which --overwrite would delete")


def test_mistakes_come_before_any_work(here, refused):
    small.write_rows(here / "open.jsonl", [{"instruction": f"Say {i}", "input": "", "output": ""} for i in range(4)])
    assert_says(refused("ppo", {}, "--reward", "rm:2"), "--reward rm is given twice: give it once")
    assert_says(refused("ppo", {}, "--reward", "nowhere:2"), "nowhere is not a directory")
    assert_says(refused("ppo", {}, "--reward", "m:2"), "--reward m has no score head")
    assert_says(refused("ppo", {}, "--reward", "rm_other"), "--reward rm_other has another tokenizer")
    assert_says(refused("ppo", {}, "--reward", f"{LENGTH}:0"), "the weight is 0")
    line = refused("ppo", {"reward": EXACT, "data": "open.jsonl"})
    assert_says(
        line, f"--reward {EXACT} compares with the record's output, and record", "of open.jsonl has none: add it"
    )
    line = refused("ppo", {"eval-data": "open.jsonl"}, "--reward", EXACT)
    assert_says(line, "of open.jsonl has none: add it")
