"""launch/ppo.py with pretraining text: header, card, resume, and mistakes in one line."""

from __future__ import annotations

import json

import pytest

from tests.launch import small
from tests.launch.jobs import assert_says, run
from tests.launch.test_resume import stop_at
from tests.reliability.remains import assert_same

WITH = {"ptx-data": "text.txt:3", "ptx-coef": "0.5", "ptx-tokens": "20"}


@pytest.fixture(autouse=True)
def files(here):
    (here / "text.txt").write_text("Good morning, how are you?\n\nशुभ प्रभात\n", encoding="utf-8")
    small.write_rows(here / "text.jsonl", [{"text": row["output"] * 9} for row in small.INSTRUCTIONS])
    return here


def test_stopped_run_resumes(here, refused, monkeypatch, capfd):
    changes = {**WITH, "max-steps": "2", "batch-size": "2", "minibatch-size": "1", "ppo-epochs": "2", "epochs": "3"}
    changes["save-every"] = "100"
    more = ("--ptx-data", "text.jsonl")
    run(monkeypatch, "ppo", {**changes, "output": "whole"}, *more)
    said = capfd.readouterr().out
    assert "text.txt:3, text.jsonl:1: 20 tokens a step, their mean loss times 0.5" in said
    assert "text.txt: " in said and "75.0% of those of a step, read " in said
    assert "text.txt:3, text.jsonl:1" in (here / "whole" / "model" / "README.md").read_text()
    rows = small.read_rows(here / "whole" / "metrics.jsonl")
    assert len(rows) == 2 and all(row["loss/ptx"] > 1 for row in rows)
    stop_at(monkeypatch, 3, lambda: run(monkeypatch, "ppo", changes, *more))
    assert_says(refused("ppo", {**changes, "ptx-coef": "0.6"}, *more, "--resume"), "ptx_coef 0.5 -> 0.6")
    run(monkeypatch, "ppo", changes, *more, "--resume")
    assert_same(here / "out", here / "whole")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({**WITH, "ptx-data": None}, ("--ptx-coef is given without --ptx-data",)),
        ({**WITH, "ptx-data": "absent.txt"}, ("cannot read absent.txt: No such file",)),
        ({**WITH, "ptx-data": "prompts.jsonl"}, ("prompts.jsonl:1: field 'text' is missing",)),
        ({**WITH, "ptx-coef": "0"}, ("--ptx-coef is 0.0: give more than 0", "--ptx-data")),
        ({**WITH, "ptx-tokens": "0"}, ("--ptx-tokens is 0: give 1 or more",)),
        ({**WITH, "ptx-data": "text.txt:-1"}, ("--ptx-data text.txt:-1: the weight is -1",)),
    ],
)
def test_mistake_is_one_line(refused, changes, words):
    assert_says(refused("ppo", changes), *words)


def test_other_jobs_have_no_such_flag(refused):
    assert_says(refused("sft", {"ptx-data": "text.txt"}), "unknown flag --ptx-data")


def test_config_without_text_is_as_before(here, monkeypatch):
    run(monkeypatch, "ppo", {})
    settings = json.loads((here / "out" / "config.json").read_text())["settings"]
    assert settings["ptx_data"] is settings["ptx_coef"] is settings["ptx_tokens"] is None
