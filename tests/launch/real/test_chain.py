"""The whole chain of a real run on a tiny model: every step runs, a killed one goes on, the report has every table."""

import json

import pytest

from engine.init_model import init_model
from launch.real import __main__ as real
from launch.real import data, stages
from tests.greetings import GREETINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def small_run(tmp_path, monkeypatch):
    """Return the flags of a run with few tasks, steps and samples, on a random model of 13 layers."""
    base = tmp_path / "base"
    init_model(list(GREETINGS.values()) * 2, 320, base, family="bloom", layers=13, hidden=16, heads=2)
    monkeypatch.setattr(data, "TASKS", 120)
    monkeypatch.setattr(data, "make_embedded", few_heldout(data.make_embedded))
    for name, steps in (("SFT", 3), ("REWARD", 2)):
        monkeypatch.setattr(stages, name, (*getattr(stages, name), "--max-steps", str(steps)))
    few = {"--batch-size": "16", "--minibatch-size": "8", "--max-steps": "2", "--max-new-tokens": "6"}
    rlhf = [few.get(before, value) for before, value in zip(("", *stages.RLHF), stages.RLHF)]
    monkeypatch.setattr(stages, "RLHF", tuple(rlhf))
    monkeypatch.setattr(stages, "NORMALISED", ())  # no answer of a random model is right: no deviation to divide by
    return ["--lang", "ne", "--base", str(base), "--runs", str(tmp_path / "runs")]


def few_heldout(make):
    """Return `make_embedded` with 12 held-out tasks and rankings."""

    def made(*args, **kwargs):
        whole = make(*args, **kwargs)
        object.__setattr__(whole, "heldout", whole.heldout[:12])
        object.__setattr__(whole, "ranking_heldout", whole.ranking_heldout[:12])
        return whole

    return made


def test_every_step_runs_once_and_the_report_has_every_table(small_run, tmp_path, capfd):
    folder = tmp_path / "runs" / "ne"
    real.job(small_run)
    page = (folder / "report.md").read_text(encoding="utf-8")
    for part in (
        "| right answers, % |",
        "| base | sft | rlhf_0 | control | check | best of 8 |",
        "Paired differences",
        "|  | 0 |",  # a random model has no right sample to put above a wrong one
        "## RLHF",
    ):
        assert part in page
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    names = [step["step"] for step in steps]
    assert len(names) == len(set(names)) and names[:3] == ["sft", "ranking samples", "rankings"]
    assert all(step["seconds"] > 0 and step["peak_gb"] > 0 for step in steps)

    (folder / "answers" / "sft.tasks.b.jsonl").unlink()  # one step is not done
    real.job(small_run)
    again = [json.loads(line)["step"] for line in (folder / "steps.jsonl").read_text().splitlines()][len(names) :]
    assert again == ["sft.tasks.b"]
    assert (folder / "report.md").read_text(encoding="utf-8").split("## Time")[0] == page.split("## Time")[0]
