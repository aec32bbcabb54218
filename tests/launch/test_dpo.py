"""launch/dpo.py: what it prints, writes and exports, from every kind of ranking file, and that others read it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.models import load_model
from engine.report.__main__ import main as report
from tests.engine.training.trainers import logits_of
from tests.launch import small
from tests.launch.jobs import assert_says, run

FEW = {"max-steps": "4", "epochs": "4", "batch-size": "2", "lr": "1e-3", "eval-every": "2"}


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_run_from_rankings_to_a_model(here, monkeypatch, capfd):
    run(monkeypatch, "dpo", {**FEW, "top-layers": "1"})
    said, result = capfd.readouterr().out, result_of(here / "out")
    assert_says(
        said, "DPO in Nepali", "m (top 1 of 2 layers trained)", "3 rankings, 9 responses", "held out  2 rankings",
        "plan      4 steps of 2 rankings", "loss      pairs, beta 0.1", "trunk ",
        "held out, after step 0: loss 0.693 ±",
        "1/4   0.6931    0.0000   0.0000", "held-out loss, before -> after", "50.0 ± 0.0 % -> ",
    )  # fmt: skip
    assert result["heldout_loss_before"] == pytest.approx(math.log(2)) and result["loss_last"] < result["loss_first"]
    rows = [json.loads(line) for line in (here / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/loss" in row] == [0, 2, 4]
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"}
    names |= {"logps/rejected", "loss/dpo", "grad_norm", "time/tokens_per_s", "log_ratio/chosen", "log_ratio/rejected"}
    assert names <= rows[1].keys()
    card = (here / "out" / "model" / "README.md").read_text()
    assert_says(card, "direct preference optimisation", "| beta | `0.1` |", "text-generation", "heldout loss before")
    assert (here / "out" / "model" / "generation_config.json").is_file()
    ours, theirs = load_model(here / "out" / "model"), AutoModelForCausalLM.from_pretrained(here / "out" / "model")
    tokens = list(range(5, 25))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(ours, tokens), theirs(torch.tensor([tokens])).logits[0])
    run(monkeypatch, "sample", {"model": "out/model"})
    assert report([str(here / "out")]) == 0
    page = (here / "out" / "report.html").read_text(encoding="utf-8")
    assert_says(page, "<title>Nepali: DPO</title>", "DPO: margin of the implicit reward", "DPO loss on held-out data")
    run(monkeypatch, "dpo", {**FEW, "top-layers": "1"})
    assert "its result is shown again" in capfd.readouterr().out


def test_all_options_together(here, monkeypatch, capfd):
    changes = {"label-smoothing": "0.1", "sft-coef": "0.5", "length-normalised": "true", "beta": "2", "heldout": "0"}
    run(monkeypatch, "dpo", {**FEW, **changes})
    assert_says(capfd.readouterr().out, "all of 2 layers trained", "held out  nothing", "pairs, beta 2")
    row = json.loads((here / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss/dpo"] == pytest.approx(math.log(2) + 0.5 * row["nll_loss"], rel=1e-6)
    assert "accuracy" not in result_of(here / "out")
    run(monkeypatch, "dpo", {**FEW, "dpo-loss": "plackett-luce", "output": "listwise"})
    assert result_of(here / "listwise")["loss_first"] == pytest.approx(math.log(6), rel=1e-6)


def test_pairs_in_either_format_and_a_held_out_file(here, monkeypatch, capfd):
    """Two pairs of a prompt that share an answer become one ranking of three."""
    okapi = [("good", "yes"), ("yes", "no")]
    small.write_rows(here / "okapi.jsonl", [
        {"instruction": f"Say it {i}", "input": "", "prefered_output": better, "rejected_output": worse}
        for i in range(3) for better, worse in okapi
    ])  # fmt: skip
    small.write_rows(here / "pairs.jsonl", [{"prompt": f"Say {i}", "chosen": "a b", "rejected": "c"} for i in range(3)])
    run(monkeypatch, "dpo", {**FEW, "data": "okapi.jsonl", "eval-data": "pairs.jsonl"})
    assert_says(
        capfd.readouterr().out, "okapi.jsonl: 6 rankings of 3 prompts merged into 3", "3 rankings, 9 responses",
        "held out  3 rankings",
    )  # fmt: skip
    small.write_rows(here / "same.jsonl", [{"prompt": "Say 1", "chosen": "good " * 60, "rejected": "good " * 59}])
    with pytest.raises(SystemExit):
        run(monkeypatch, "dpo", {"data": "same.jsonl", "truncate": "right", "output": "none"})
    assert "same.jsonl has no usable ranking: give responses that differ" in capfd.readouterr().err
