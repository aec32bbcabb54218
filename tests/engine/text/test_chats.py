"""Chats: the exported chat template gives in transformers the same ids as training and sampling."""

from __future__ import annotations

import pytest
from jinja2.exceptions import TemplateError
from tokenizers import AddedToken
from transformers import AutoTokenizer

from engine.base.errors import UserError
from engine.base.records import InstructionRecord
from engine.text.chats import encode_chat, with_chat_template
from engine.text.encoding import encode_instructions
from engine.text.templates import TEMPLATES, Template
from engine.text.tokenizer import decode, encode_prompt, load_tokenizer, train_byte_bpe, train_sentencepiece
from tests.greetings import GREETINGS

TEXTS = [*GREETINGS.values(), TEMPLATES["alpaca"].format("Say =>  x", "y")] * 3
WORDS = ["नेपालीमा भन", 'a "quoted" \\ {{ user }} {% if %}', "two\n\nlines ", " 12 blanks  before", ""]


@pytest.fixture(scope="module", params=["sentencepiece", "bytes"])
def tokenizer(request, tmp_path_factory):
    """Tokenizers of base models: LLaMA's with BOS and dummy prefix, BLOOM's with neither."""
    folder = tmp_path_factory.mktemp(request.param)
    train = {"sentencepiece": train_sentencepiece, "bytes": train_byte_bpe}[request.param]
    train(TEXTS, 640 if request.param == "sentencepiece" else 400).save_pretrained(folder)
    return load_tokenizer(folder)


def exported(tokenizer, template, folder):
    """Return the tokenizer as a user loads it from the exported model."""
    with_chat_template(tokenizer, template).save_pretrained(folder)
    assert tokenizer.chat_template is None
    return AutoTokenizer.from_pretrained(folder)


def turns(*contents, system=None):
    chat = [{"role": "system", "content": system}] if system else []
    return chat + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("words", WORDS)
def test_one_turn_equals_the_prompt_in_training(tokenizer, tmp_path, name, words):
    example = encode_instructions([InstructionRecord("a", words, "", "x")], tokenizer, TEMPLATES[name], 512, "error")[0]
    rendered = exported(tokenizer, TEMPLATES[name], tmp_path).apply_chat_template(turns(words))["input_ids"]
    assert rendered == list(example.tokens[: example.prompt_len])
    assert (rendered[0] == tokenizer.bos_token_id) == (tokenizer("").input_ids != [])
    assert decode(tokenizer, rendered[1:] if rendered[0] == tokenizer.bos_token_id else rendered).strip(" ") == (
        TEMPLATES[name].format(words).strip(" ")
    )


@pytest.mark.parametrize("answer", ["1", "नेपाली", "Good morning, <x>", "=> (yes)"])
def test_several_turns_equal_prompts_and_responses_in_training(tokenizer, tmp_path, answer):
    template, records = TEMPLATES["alpaca"], [("One?", answer), ("दुई?\n", answer), ("Three?", "")]
    examples = encode_instructions(
        [InstructionRecord("a", q, "", a) for q, a in records], tokenizer, template, 999, "error"
    )
    assert len({e.tokens[0] for e in examples}) == 1
    bos = int(examples[0].tokens[0] == tokenizer.bos_token_id)  # only before the first turn
    last = examples[2].tokens[bos : examples[2].prompt_len]
    expected = [*examples[0].tokens, *examples[1].tokens[bos:], *last]
    chat = turns("One?", answer, "दुई?\n", answer, "Three?")
    assert encode_chat(tokenizer, template, chat) == expected
    assert exported(tokenizer, template, tmp_path).apply_chat_template(chat)["input_ids"] == expected


def test_system_turn_goes_before_the_next_instruction(tokenizer, tmp_path):
    chat = [{"role": "system", "content": "Be"}, *turns("One?", "1", "Two?", system="brief.")]
    rendered = exported(tokenizer, TEMPLATES["alpaca"], tmp_path).apply_chat_template(chat)["input_ids"]
    assert rendered == encode_chat(tokenizer, TEMPLATES["alpaca"], chat)
    first = encode_chat(tokenizer, TEMPLATES["alpaca"], turns("Be\nbrief.\nOne?"))
    assert rendered[: len(first)] == first
    assert rendered.count(tokenizer.eos_token_id) == 1


def test_template_ending_in_a_blank_takes_one_turn(tokenizer, tmp_path):
    """`plain` ends in a blank: one token in training, but merged into the first word in rendered text."""
    there = exported(tokenizer, TEMPLATES["plain"], tmp_path)
    with pytest.raises(TemplateError, match="merges with an answer: give one user turn"):
        there.apply_chat_template(turns("One?", "The answer", "Two?"))


def test_unknown_role_is_named(tokenizer, tmp_path):
    chat = [{"role": "tool", "content": "x"}]
    with pytest.raises(UserError, match="'tool'"):
        encode_chat(tokenizer, TEMPLATES["plain"], chat)
    with pytest.raises(TemplateError, match="not tool"):
        exported(tokenizer, TEMPLATES["plain"], tmp_path).apply_chat_template(chat)


def test_no_chat_template_is_written_if_ids_would_differ():
    """This BOS strips white space after it, and the template begins with a line break."""
    tokenizer = train_sentencepiece(TEXTS, 640)
    tokenizer.add_special_tokens({"bos_token": AddedToken("<s>", rstrip=True, normalized=False)})
    template = Template("\n{instruction}{input}\n", "\n{instruction}\n")
    line_break = encode_prompt(tokenizer, "\n")
    assert encode_chat(tokenizer, template, turns("One?"))[: len(line_break)] == line_break
    assert with_chat_template(tokenizer, template).chat_template is None
