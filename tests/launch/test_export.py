"""Exported models load in transformers; export errors show before the first step and leave no file."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from engine.models import load_model
from engine.text.tokenizer import load_tokenizer
from engine.training.export import try_export
from tests.launch import small
from tests.launch.conftest import edit_json
from tests.launch.jobs import TRAINERS, assert_says, run


@pytest.mark.parametrize("pad", [-1, 320])
@pytest.mark.parametrize("job", TRAINERS)
def test_model_without_padding_id(here, monkeypatch, job, pad):
    """For a tokenizer without padding token, as LLaMA's. transformers then pads reward models with BOS."""
    base = small.make_model(here / "padded", "llama")
    edit_json(base / "config.json", pad_token_id=pad)
    own = {"ppo": {"reward": "rewards_of_exports:length"}}.get(job, {})
    (here / "rewards_of_exports.py").write_text("def length(prompt, response): return float(len(response))\n")
    run(monkeypatch, job, {"model": "padded", "max-length": "128", **own})
    kind = AutoModelForSequenceClassification if job == "reward" else AutoModelForCausalLM
    pad = 1 if job == "reward" else None
    assert kind.from_pretrained(here / "out" / "model").config.pad_token_id == pad
    assert AutoTokenizer.from_pretrained(here / "out" / "model").pad_token_id == pad


@pytest.mark.parametrize("job", TRAINERS)
def test_export_errors_show_before_the_first_step(refused, monkeypatch, job):
    def overflows(*_, **__):
        raise OverflowError("can't convert negative int to unsigned")

    monkeypatch.setattr("engine.models.hf._matching_tokenizer", overflows)
    line = refused(job, {})
    assert_says(line, "the model could not be exported (can't convert negative int to unsigned)", "of --model")


@pytest.mark.parametrize("job", TRAINERS)
def test_model_card_errors_show_before_the_first_step(refused, monkeypatch, job):
    monkeypatch.setattr("engine.run.model_card._SHOWN", (["no name"],))
    assert_says(refused(job, {}), "the model could not be exported (")


def test_trial_export_is_read_back(good_and_bad, monkeypatch):
    model, tokenizer = load_model(good_and_bad / "m"), load_tokenizer(good_and_bad / "m")
    settings = {"lang": "ne"}
    assert try_export(model, "sft", settings, {}, tokenizer, (2,)) is None
    with pytest.raises(ValueError, match=r"exported \(config.json has hidden_size 0: give a whole number") as caught:
        model.config.hidden_size = 0
        try_export(model, "sft", settings, {}, tokenizer, (2,))
    assert "tmp" not in str(caught.value)
    model.config.hidden_size = 16
    with pytest.raises(ValueError, match=r"exported \(generation_config.json names the eos_token_id 320"):
        try_export(model, "ppo", settings, {}, tokenizer, (2, 320))


def test_foreign_model_folder_shows_before_the_first_step(here, refused, monkeypatch):
    """A resumed run finds another folder in place of its model."""
    (here / "out" / "model").mkdir(parents=True)
    (here / "out" / "model" / "thesis").write_text("years of work")
    run_config = {"settings": {}}
    (here / "out" / "config.json").write_text(json.dumps(run_config))
    line = refused("sft", {}, "--resume", "--override")
    assert_says(line, "out/model exists and is not a model directory: choose another path or move it away")
