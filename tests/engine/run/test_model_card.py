"""Model cards and generation settings: transformers' pipeline answers a chat, and the card has its sections."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer, pipeline, set_seed

from engine.models import load_model, save_model
from engine.run.model_card import card, generation_config, write_card
from engine.text.chats import with_chat_template
from engine.text.eos import eos_ids_of
from engine.text.templates import TEMPLATES
from engine.text.tokenizer import load_tokenizer
from tests.launch import small

SETTINGS = {"lang": "ne", "template": "plain", "max_new_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of an exported model, its own tokenizer)."""
    base = small.make_model(tmp_path_factory.mktemp("base") / "m")
    tokenizer, folder = load_tokenizer(base), base.with_name("model")
    save_model(load_model(base), folder, with_chat_template(tokenizer, TEMPLATES["plain"]))
    write_card(folder, "ppo", SETTINGS, {"prompts": "a|b.jsonl"}, {"score_last": 0.25}, tokenizer, (2, 9))
    assert tokenizer.chat_template is None
    return folder, tokenizer


def test_transformers_pipeline_answers_a_chat(exported):
    folder, _ = exported
    set_seed(0)
    answer = pipeline("text-generation", str(folder))([{"role": "user", "content": "नेपालीमा भन"}])
    turns = answer[0]["generated_text"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    again = AutoTokenizer.from_pretrained(folder)
    longest = max(len(again.decode([i])) for i in range(small.VOCABULARY))
    assert len(turns[1]["content"]) <= longest * SETTINGS["max_new_tokens"]
    load_model(folder)  # the added files do not disturb the engine
    config = json.loads((folder / "generation_config.json").read_text())
    assert (config["temperature"], config["eos_token_id"]) == (0.7, [2, 9])
    assert eos_ids_of(folder, exported[1], small.VOCABULARY) == (2, 9)
    assert generation_config(SETTINGS, exported[1], (2,))["eos_token_id"] == 2


def test_card_sections(exported):
    text = (exported[0] / "README.md").read_text(encoding="utf-8")
    for words in ('language: ["ne"]', "Nepali", "`a/b.jsonl`", "| temperature | `0.7` |", "| score last | 0.25 |"):
        assert words in text
    assert "## Intended use" in text
    assert "## Limits" in text
    assert "text-classification" in card("reward", SETTINGS, {}, {})
