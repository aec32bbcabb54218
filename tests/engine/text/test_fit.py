"""Tokens per word, per character and bytes per token, against counts made by hand."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from engine.base.languages import Language, get_language
from engine.text.fit import Fit, has_spaces, longest_words, measure
from engine.text.tokenizer import train_byte_bpe


def character_tokenizer():
    """Return a tokenizer with one token for each character but spaces, and a BOS before each text."""
    words = {c: i for i, c in enumerate("<? abcdefgएक今天好")}
    backend = Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(single="< $A", special_tokens=[("<", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<", unk_token="?", eos_token="?")


def test_counts_are_those_made_by_hand():
    tokenizer = character_tokenizer()
    assert len(tokenizer.encode("ab")) == 3  # with BOS, which is not counted
    fit = measure(tokenizer, ["ab cde", "एक"])
    assert fit == Fit(tokens=7, words=3, characters=8, bytes=12, parts=0)
    assert (fit.per_word, fit.per_character, fit.bytes_per_token) == (7 / 3, 7 / 8, 12 / 7)
    assert measure(tokenizer, ["今天 好"], spaces=False) == Fit(tokens=3, words=3, characters=4, bytes=10)


def test_tokens_that_are_not_whole_characters():
    """Of 'aÄÄ', Ä is two bytes: with a token for each byte 4 of 5 are parts. An unknown character is one, too."""
    bytes_only = train_byte_bpe(["aa"], 260)
    assert measure(bytes_only, ["aÄÄ"]) == Fit(tokens=5, words=1, characters=3, bytes=5, parts=4)
    assert measure(character_tokenizer(), ["aX"]).share_of_parts == 0.5


def test_the_longest_words_come_first():
    assert longest_words(character_tokenizer(), ["ab cde f", "cde ab", "gab"], 3) == [("cde", 3), ("gab", 3), ("ab", 2)]


@pytest.mark.parametrize(("code", "spaces"), [("en", True), ("ne", True), ("sr", True), ("vi", True), ("zh", False)])
def test_languages_written_without_spaces(code, spaces):
    assert has_spaces(get_language(code)) == spaces


@pytest.mark.parametrize("script", ["Jpan", "Thai", "Laoo", "Khmr", "Mymr"])
def test_scripts_written_without_spaces(script):
    assert not has_spaces(Language("xx", "X", "X", (script,), "none", None, llama=False))
