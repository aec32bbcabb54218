"""Stop strings against searching the whole text after every token."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.generation.stop_strings import StopMatcher
from engine.text.tokenizer import decode, encode_response, train_byte_bpe, train_sentencepiece
from tests.greetings import GREETINGS

TEXTS = list(GREETINGS.values()) * 2
BYTE_BPE, SPM = train_byte_bpe(TEXTS, 640), train_sentencepiece(TEXTS, 640)
each_tokenizer = pytest.mark.parametrize("tokenizer", [BYTE_BPE, SPM], ids=["byte BPE", "SentencePiece"])


def searched_whole(tokenizer, tokens, stops):
    """(text before the stop, tokens needed to see it): the definition, without any of the matcher's economy."""
    for n in range(1, len(tokens) + 1):
        text = decode(tokenizer, tokens[:n])
        found = [text.find(stop) for stop in stops if stop in text]
        if found and not text.endswith("\ufffd"):
            return text[: min(found)], n
    return None


def fed_one_by_one(tokenizer, tokens, stops):
    matcher = StopMatcher(tokenizer, stops)
    for n, token in enumerate(tokens, 1):
        if stop := matcher.feed([token]):
            return stop, n
    return None


@each_tokenizer
@settings(deadline=None, max_examples=60)
@given(
    text=st.text(st.sampled_from("ab \n#é€नी😀"), max_size=30),
    stops=st.lists(st.text(st.sampled_from("ab \n#é€नी😀"), min_size=1, max_size=3), min_size=1, max_size=3),
)
@example(text=" é", stops=["é"])  # one byte token holds the space and half of the letter
def test_stops_at_the_first_stop_string(tokenizer, text, stops):
    tokens = encode_response(tokenizer, text)
    expected = searched_whole(tokenizer, tokens, stops)
    got = fed_one_by_one(tokenizer, tokens, stops)
    if expected is None:
        assert got is None
        return
    stop, n = got
    assert (stop.text, n) == expected
    held = decode(tokenizer, tokens[: stop.num_tokens])
    assert held.startswith(stop.text) or "\ufffd" in held, "the tokens kept hold the text"
    if stop.num_tokens:
        assert len(decode(tokenizer, tokens[: stop.num_tokens - 1]).rstrip("\ufffd")) < len(stop.text), "and no more"
    assert StopMatcher(tokenizer, stops).feed(tokens) == stop, "several tokens at a time make no difference"


@given(st.lists(st.integers(0, len(BYTE_BPE) - 1), max_size=30))
@settings(deadline=None, max_examples=60)
def test_incomplete_characters(tokens):
    stop = "\n\n"
    assert (fed_one_by_one(BYTE_BPE, tokens, [stop]) is None) == (searched_whole(BYTE_BPE, tokens, [stop]) is None)


@each_tokenizer
def test_first_stop_string_wins(tokenizer):
    tokens = encode_response(tokenizer, "one two three")
    matcher = StopMatcher(tokenizer, ["wo t", "three", "two"])
    assert matcher.feed(tokens).text == "one "
    assert StopMatcher(tokenizer, ["one"]).feed(tokens) == ("", 0)
    assert StopMatcher(tokenizer, []).feed(tokens) is None


def test_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="a stop string is empty"):
        StopMatcher(BYTE_BPE, ["a", ""])
