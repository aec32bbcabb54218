"""The one rule for prompt templates: what is given, what the model was trained with, its chat template, Alpaca's."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer

from engine.base.errors import UserError
from engine.run.template_choice import check_reward_template, check_template, choose_template
from engine.text.chat_template import ChatTemplate
from engine.text.chats import with_chat_template
from engine.text.templates import RECORD, TEMPLATES, load_template
from engine.text.tokenizer import load_tokenizer
from tests.engine.text.tokenizer_kinds import KINDS, tokenizer_of

MINE = "<|im_start|>{instruction}|{input}<|im_end|>\n---\n<|im_start|>{instruction}<|im_end|>\n"


@pytest.fixture
def mine(tmp_path):
    """A template's file."""
    (tmp_path / "mine.txt").write_text(MINE, encoding="utf-8")
    return tmp_path / "mine.txt"


def chosen(folder, given=None):
    choice = choose_template(given, folder, load_tokenizer(folder))
    return choice.template.name, choice.why


def saved(folder, template=None, chat=True):
    """A model's folder, as far as its tokenizer goes: exported with a template, or as it was published."""
    tokenizer = tokenizer_of("chatml")
    if template is None and not chat:
        tokenizer = KINDS["chatml"]()
        tokenizer.chat_template = None
    (tokenizer if template is None else with_chat_template(tokenizer, template)).save_pretrained(folder)
    return folder


def test_default_is_chat_template_then_alpaca(tmp_path):
    assert chosen(saved(tmp_path / "a")) == ("chat", "the model has one and no record of another")
    default = "the default: the model has neither a record nor a chat template"
    assert chosen(saved(tmp_path / "b", chat=False)) == ("alpaca", default)


def test_given_template_wins_and_difference_is_noted(tmp_path, mine):
    folder = saved(tmp_path / "m", TEMPLATES["plain"])
    assert chosen(folder, "plain") == ("plain", "given")
    assert chosen(folder, "alpaca") == ("alpaca", "given; the model was trained with plain")
    assert chosen(folder, str(mine)) == ("mine.txt", "given; the model was trained with plain")
    assert chosen(folder, "chat") == ("chat", "given; the model was trained with plain")
    assert chosen(saved(tmp_path / "published"), "alpaca") == ("alpaca", "given")


@pytest.mark.parametrize("name", ["plain", "mine", "chat"])
def test_record_survives_moving_and_saving(tmp_path, mine, name):
    template = {"plain": TEMPLATES["plain"], "mine": load_template(mine), "chat": ChatTemplate(tokenizer_of("chatml"))}
    folder = saved(tmp_path / "run" / "model", template[name])
    mine.unlink()
    moved = shutil.copytree(folder, tmp_path / "moved")
    AutoTokenizer.from_pretrained(moved).save_pretrained(tmp_path / "again")
    for place in (folder, moved, tmp_path / "again"):
        choice = choose_template(None, place, load_tokenizer(place))
        assert choice.why == "the model was trained with it"
        assert choice.template.record() == template[name].record()
        assert choice.template.pieces("One", "Two") == template[name].pieces("One", "Two")


def test_run_record_is_used_without_model_record(tmp_path, mine):
    """Models that were exported before the record lay in them."""
    folder = saved(tmp_path / "model")
    config = {"settings": {"template": "plain"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert chosen(folder) == ("plain", "the model's run used it")
    (tmp_path / "config.json").write_text(json.dumps({**config, "template": load_template(mine).record()}))
    assert chosen(folder)[0] == "mine.txt"
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"template": "gone.txt"}}))
    with pytest.raises(
        UserError, match="config.json names the model's prompt template, which is not there, give --temp"
    ):
        chosen(folder)
    assert chosen(folder, "alpaca")[0] == "alpaca"


@pytest.mark.parametrize(
    "record", [5, {}, {"name": 5}, {"name": "a", "with_input": "x"}, {"name": "chat", "x": 1}, "b"]
)
def test_damaged_record_is_one_line(tmp_path, record):
    folder = saved(tmp_path / "m", TEMPLATES["plain"])
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), RECORD: record}))
    with pytest.raises(UserError, match="tokenizer_config.json") as caught:
        chosen(folder)
    assert "\n" not in str(caught.value)
    assert chosen(folder, "alpaca")[0] == "alpaca"


def test_wrong_name_is_found_before_loading(mine):
    for good in (None, "chat", "plain", str(mine)):
        check_template(good)
    with pytest.raises(UserError, match="did you mean 'chat'"):
        check_template("chatt")


def test_reward_model_with_other_template_is_refused(tmp_path, mine):
    policy = saved(tmp_path / "p", TEMPLATES["alpaca"])
    tokenizer = load_tokenizer(policy)
    choice = choose_template(None, policy, tokenizer)
    same = "the same prompt template"
    assert check_reward_template(saved(tmp_path / "a", TEMPLATES["alpaca"]), choice, tokenizer) == same
    assert check_reward_template(saved(tmp_path / "none", chat=False), choice, tokenizer) == (
        "its prompt template is not recorded"
    )
    for name, template in (("plain", TEMPLATES["plain"]), ("chat", ChatTemplate(tokenizer_of("chatml")))):
        with pytest.raises(UserError) as caught:
            check_reward_template(saved(tmp_path / name, template), choice, tokenizer)
        assert f"was trained with the prompt template {name}, the policy has alpaca: train" in str(caught.value)
    with pytest.raises(UserError, match="the prompt template chat, the policy has alpaca"):
        check_reward_template(saved(tmp_path / "published"), choice, tokenizer)


def test_reward_templates_are_compared_by_text(tmp_path, mine):
    template = load_template(mine)
    reward = saved(tmp_path / "r", template)
    policy = saved(tmp_path / "p", template)
    tokenizer = load_tokenizer(policy)
    assert check_reward_template(reward, choose_template(None, policy, tokenizer), tokenizer)
    mine.write_text(MINE.replace("|{input}", "\n{input}"), encoding="utf-8")
    with pytest.raises(UserError, match="has mine.txt, one of the same name with another text"):
        check_reward_template(reward, choose_template(str(mine), policy, tokenizer), tokenizer)
    chat = saved(tmp_path / "c", ChatTemplate(tokenizer_of("chatml")))
    theirs = load_tokenizer(chat)
    assert check_reward_template(chat, choose_template(None, saved(tmp_path / "q"), theirs), theirs)
