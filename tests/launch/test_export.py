"""What is exported loads in transformers, and what could not be is found before the first step and leaves nothing."""

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


@pytest.fixture(scope="module", autouse=True)
def alone():
    with small.alone():
        yield


@pytest.mark.parametrize("pad", [-1, 320])
@pytest.mark.parametrize("job", TRAINERS)
def test_a_model_whose_padding_id_is_none_is_trained_and_exported(here, monkeypatch, job, pad):
    """With a tokenizer that has no padding token, as LLaMA's: transformers pads for a reward model with BOS then."""
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
def test_what_cannot_be_exported_is_found_before_the_first_step(refused, monkeypatch, job):
    def overflows(*_, **__):
        raise OverflowError("can't convert negative int to unsigned")

    monkeypatch.setattr("engine.models.hf._matching_tokenizer", overflows)
    line = refused(job, {})
    assert_says(line, "the model could not be exported (can't convert negative int to unsigned)", "of --model")


@pytest.mark.parametrize("job", TRAINERS)
def test_a_card_that_cannot_be_written_is_found_before_the_first_step(refused, monkeypatch, job):
    monkeypatch.setattr("engine.run.model_card._SHOWN", (["no name"],))
    assert_says(refused(job, {}), "the model could not be exported (")


def test_a_trial_reads_back_what_it_wrote_and_names_no_temporary_folder(good_and_bad, monkeypatch):
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


def test_a_folder_in_the_place_of_the_model_is_found_before_the_first_step(here, refused, monkeypatch):
    """As in a run that is taken up again, with another folder in the place of its model."""
    (here / "out" / "model").mkdir(parents=True)
    (here / "out" / "model" / "thesis").write_text("years of work")
    run_config = {"settings": {}}
    (here / "out" / "config.json").write_text(json.dumps(run_config))
    line = refused("sft", {}, "--resume", "--override")
    assert_says(line, "out/model exists and is not a model directory: choose another path or move it away")
