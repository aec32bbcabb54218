"""Prompt templates follow one rule in all commands: the printed choice, the encoding, and errors."""

from __future__ import annotations

import json
import shutil

import pytest

from engine.base.records import read_instructions
from engine.run.template_choice import choose_template
from engine.text.chats import encode_instruction
from engine.text.tokenizer import load_tokenizer
from launch import sample
from launch.serve import ModelSettings, load
from tests.launch import small
from tests.launch.jobs import assert_says, run

JINJA = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
OWN, TRAINED = "chat (the model has one and no record of another)", "chat (the model was trained with it)"
UNSAID = {"template": None, "max-length": "200"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a model with a chat template."""
    folder = small.make_model(tmp_path_factory.mktemp("base") / "m")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = JINJA
    tokenizer.save_pretrained(folder)
    return folder


def said(capsys):
    return capsys.readouterr().out


def test_chat_template_passes_from_stage_to_stage(here, base, monkeypatch, capsys):
    changes = {**UNSAID, "model": str(base), "output": "sft"}
    run(monkeypatch, "sft", changes)
    assert f"  template  {OWN}\n" in said(capsys)
    assert json.loads((here / "sft" / "config.json").read_text())["template"] == {"name": "chat"}
    assert "| template | `chat` |" in (here / "sft" / "model" / "README.md").read_text()
    moved = str(shutil.copytree(here / "sft" / "model", here / "moved"))
    run(monkeypatch, "reward", {**UNSAID, "model": moved, "output": "reward"})
    assert f"  template  {TRAINED}\n" in said(capsys)
    reward = str(shutil.copytree(here / "reward" / "model", here / "moved reward"))
    run(monkeypatch, "ppo", {**UNSAID, "model": moved, "reward": reward, "output": "ppo"})
    head = said(capsys)
    assert f"  template  {TRAINED}\n" in head
    assert "the same prompt template)" in head
    policy = str(here / "ppo" / "model")
    run(monkeypatch, "sample", {**UNSAID, "model": policy, "output": "o.jsonl"})
    assert f"  template  {TRAINED}\n" in said(capsys)
    loaded = load(ModelSettings(policy, max_length=200, slots=1))
    assert loaded.template == TRAINED
    assert loaded.tokenizer.chat_template == JINJA
    # A chat of one turn equals the training prompt and the rendering of transformers.
    turn = [{"role": "user", "content": "Bon </s> dia"}]
    prompt = encode_instruction(
        loaded.tokenizer, choose_template(None, policy, loaded.tokenizer).template, "Bon </s> dia"
    )
    assert list(loaded.dialogs.encode(turn)) == prompt
    assert prompt.count(loaded.tokenizer.eos_token_id) == 1
    harmless = [{"role": "user", "content": "Bon dia"}]
    rendered = loaded.tokenizer.apply_chat_template(harmless, add_generation_prompt=True)["input_ids"]
    assert list(loaded.dialogs.encode(harmless)) == rendered


def test_sample_uses_the_prompts_of_training(here, base, monkeypatch):
    """Checked by the requests that reach generation."""
    asked = []

    def spy(model, tokenizer, requests, *rest):
        asked.extend(request.prompt for request in requests)
        return real(model, tokenizer, requests, *rest)

    real = sample.sample
    monkeypatch.setattr(sample, "sample", spy)
    run(monkeypatch, "sample", {**UNSAID, "model": str(base), "num-responses": "1"})
    tokenizer = load_tokenizer(base)
    for record, prompt in zip(read_instructions(here / "prompts.jsonl"), sorted(asked, key=asked.index), strict=True):
        content = record.instruction + (f"\n\n{record.input}" if record.input else "")
        turn = [{"role": "user", "content": content}]
        assert list(prompt) == tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]


def test_ppo_refuses_a_reward_model_with_another_template(here, refused, monkeypatch, capfd):
    run(monkeypatch, "reward", {"template": "alpaca", "output": "reward", "max-length": "300"})
    run(monkeypatch, "reward", {"template": "plain", "output": "plain", "max-length": "300"})
    line = refused("ppo", {"reward": "reward/model"})
    assert_says(line, "--reward reward/model was trained with the prompt template alpaca, the policy has plain: train")
    assert_says(line, "--template")
    shutil.move(here / "reward" / "model", here / "away")
    assert_says(refused("ppo", {"reward": "away"}), "--reward away was trained with the prompt template alpaca")
    run(monkeypatch, "ppo", {"reward": "plain/model"})
    assert "the same prompt template)" in capfd.readouterr().out
    run(monkeypatch, "ppo", {"reward": "rm", "output": "unrecorded"})
    assert "its prompt template is not recorded)" in capfd.readouterr().out


@pytest.mark.parametrize("job", ["sft", "reward", "dpo", "ppo", "sample"])
def test_chat_template_is_refused_if_the_model_has_none(refused, job):
    assert_says(refused(job, {"template": "chat"}), "asks for the chat template of m, which has none: give alpaca")


def test_finished_run_without_a_template_flag(here, base, monkeypatch, capsys):
    """The rule chooses the same template again."""
    changes = {**UNSAID, "model": str(base), "max-steps": "2"}
    run(monkeypatch, "sft", changes)
    said(capsys)
    run(monkeypatch, "sft", changes)
    assert "out is complete with these settings" in said(capsys)
