"""The embedded default in each language: data, tokenizer, SFT, reward model, PPO, and loading in transformers."""

from __future__ import annotations

import json

import pytest

from datagen import embedded
from engine.base.languages import LANGUAGES
from launch import common, ppo, reward, sft

# By default one language per script family, including right-to-left and unspaced scripts; all with -m slow.
DEFAULT = ("ar",)


@pytest.mark.parametrize("lang", [
    pytest.param(code, marks=() if code in DEFAULT else pytest.mark.slow) for code in LANGUAGES
])  # fmt: skip
def test_a_few_steps_from_nothing(tmp_path, monkeypatch, capsys, lang):
    monkeypatch.setattr(common, "DEMO_RECORDS", 200)
    monkeypatch.setattr(embedded, "HELDOUT_SIZE", 32)
    monkeypatch.setattr(embedded, "RANKING_HELDOUT_SIZE", 16)
    few = ["--lang", lang, "--runs", str(tmp_path), "--batch-size", "16"]
    sft.job([*few, "--max-steps", "3"])
    reward.job([*few, "--max-steps", "2"])
    heldout = (tmp_path / lang / "data" / "heldout.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text("".join(heldout[:16]))
    ppo.job([*few, "--max-steps", "2", "--eval-data", str(tmp_path / "some.jsonl")])
    out = capsys.readouterr().out
    assert "held-out" in out and "go on" in out
    rows = [json.loads(line) for line in (tmp_path / lang / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["objective/kl"] == 0 and rows[0]["val/first_ratio_error"] < 1e-5

    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / lang / "ppo" / "model"
    text = json.loads(heldout[0])["instruction"]
    assert AutoTokenizer.from_pretrained(folder).decode(AutoTokenizer.from_pretrained(folder)(text).input_ids) == text
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / lang / "reward" / "model").num_labels == 1
