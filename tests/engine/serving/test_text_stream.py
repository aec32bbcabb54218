"""What goes out of a response as it comes: its text, the names of its tokens, the prompts of its dialog."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.generation.stop_strings import StopMatcher
from engine.serving.dialog import DialogEncoder, cut_to_fit
from engine.serving.text_stream import TextStream
from engine.serving.token_names import TokenNames
from engine.text.chat_template import ChatTemplate
from engine.text.chats import encode_chat, with_chat_template
from engine.text.templates import TEMPLATES
from engine.text.tokenizer import decode, encode_response, train_byte_bpe, train_sentencepiece
from tests.greetings import GREETINGS

TEXTS = list(GREETINGS.values()) * 2
BYTE_BPE, SPM = train_byte_bpe(TEXTS, 640), train_sentencepiece(TEXTS, 640)
each_tokenizer = pytest.mark.parametrize("tokenizer", [BYTE_BPE, SPM], ids=["byte BPE", "SentencePiece"])
letters = st.text(st.sampled_from("ab \n#é€नी😀"), max_size=30)
tokens_of_any_kind = st.lists(st.integers(0, 639), max_size=40)


def streamed(tokenizer, tokens, stops=()):
    """(what went out with each token and at the end, the stream)."""
    stream, parts = TextStream(tokenizer, stops), []
    for token in tokens:
        parts.append(stream.feed(token))
        if stream.stop:
            break
    return [*parts, stream.finish()], stream


@each_tokenizer
@settings(deadline=None, max_examples=60)
@given(text=letters)
def test_only_whole_characters_are_sent(tokenizer, text):
    tokens = encode_response(tokenizer, text)[:-1]
    parts, _ = streamed(tokenizer, tokens)
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts)
    for n in range(len(tokens) + 1):
        held = len(decode(tokenizer, tokens[:n]).rstrip("\ufffd")) - len("".join(parts[:n]))
        assert held <= 1, "no more is held back than a character, and what its token begins with"


@each_tokenizer
@settings(deadline=None, max_examples=60)
@given(tokens=tokens_of_any_kind)
@example(tokens=[130] * 12)
def test_invalid_bytes_are_held_back_briefly(tokenizer, tokens):
    tokens = [token for token in tokens if token not in tokenizer.all_special_ids]
    parts, _ = streamed(tokenizer, tokens)
    assert "".join(parts) == decode(tokenizer, tokens)
    for n in range(len(tokens) + 1):
        sent = "".join(parts[:n])
        assert len(decode(tokenizer, tokens[: max(n - 4, 0)]).rstrip("\ufffd")) <= len(sent)


@each_tokenizer
@settings(deadline=None, max_examples=80)
@given(text=letters, stops=st.lists(st.text(st.sampled_from("ab \n#é€"), min_size=1, max_size=4), max_size=3))
@example(text="aab#", stops=["ab\n", "b#"])
def test_stop_string_is_never_sent(tokenizer, text, stops):
    tokens = encode_response(tokenizer, text)[:-1]
    parts, stream = streamed(tokenizer, tokens, stops)
    expected = StopMatcher(tokenizer, stops).feed(tokens)
    assert stream.stop == expected
    assert "".join(parts) == (expected.text if expected else text)
    assert not stream.holds_back


def test_possible_start_of_a_stop_string_is_held_back():
    stream = TextStream(BYTE_BPE, ["END", "\n\n"])
    out = [stream.feed(token) for token in encode_response(BYTE_BPE, "E\nEN\nX")[:-1]]
    assert "".join(out) == "E\nEN\nX"
    assert all("".join(out[:n]) for n in range(2, len(out)))


@each_tokenizer
@given(tokens=tokens_of_any_kind)
@settings(deadline=None, max_examples=60)
def test_token_bytes_join_to_the_text(tokenizer, tokens):
    names = TokenNames(tokenizer)
    plain = [token for token in tokens if token not in tokenizer.all_special_ids]
    raw = [names.bytes_of(token) for token in plain]
    assert b"".join(raw).decode("utf-8", "replace") == decode(tokenizer, plain) == names.text(tokens)
    offsets = names.offsets(tokens, 5)
    assert offsets == sorted(offsets)
    assert all(5 <= offset <= 5 + len(names.text(tokens)) for offset in offsets)
    characters = b"".join(raw).decode("utf-8", "replace") + " "
    for n, (piece, offset) in enumerate(zip(raw, names.offsets(plain))):
        before = b"".join(raw[:n])
        if (before + b" ").decode("utf-8", "replace") == characters[:offset] + " ":  # no character is cut here
            assert (piece + b"".join(raw[n + 1 :]) + b" ").decode("utf-8", "replace") == characters[offset:]


@each_tokenizer
def test_offset_after_invalid_bytes(tokenizer):
    names = TokenNames(tokenizer)
    orphan = next(t for t in range(640) if names.bytes_of(t) == b"\xe0")
    tokens = [*encode_response(tokenizer, "a")[:-1], orphan, *encode_response(tokenizer, "b")]
    assert decode(tokenizer, tokens) == "a\ufffdb"
    assert names.offsets(tokens) == [0, 1, 2, 3]


def test_wrong_byte_costs_no_whole_character():
    """In SentencePiece's byte fallback: the tokenizers library would write U+FFFD for every byte beside it."""
    whole = encode_response(SPM, "龍😀")[:-1]
    assert len(whole) == 7, "the test needs characters without a piece of their own"
    for tokens, text in (
        (whole, "龍😀"),
        (whole[:-1], "龍\ufffd"),
        (whole[:3] + whole[:1] + whole[3:], "龍\ufffd😀"),
        (whole[1:], "\ufffd\ufffd😀"),
    ):
        assert decode(SPM, tokens) == text
        assert "".join(streamed(SPM, tokens)[0]) == text


@each_tokenizer
def test_names_and_offsets_by_hand(tokenizer):
    names = TokenNames(tokenizer)
    tokens = encode_response(tokenizer, "a 😀b")
    assert b"".join(map(names.bytes_of, tokens)) == "a 😀b".encode()
    assert names.name(tokens[-1]) == "</s>"
    assert names.bytes_of(tokens[-1]) == b""
    assert names.name(tokens[0]) == "a"
    assert names.name(next(t for t in tokens if names.bytes_of(t)[-1:] == b"\xf0")).startswith("bytes:")
    assert names.name(next(t for t in tokens if names.bytes_of(t) == b"\x9f")) == "bytes:\\x9f"
    assert names.offsets(tokens)[-2:] == [3, 4], "b stands behind three characters, the end behind four"


DIALOG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Wie geht es?"},
    {"role": "assistant", "content": "Gut."},
    {"role": "user", "content": "Warum?"},
]


def test_dialog_has_the_token_ids_of_training():
    template = TEMPLATES["alpaca"]
    exported = with_chat_template(BYTE_BPE, template)
    ids = DialogEncoder(BYTE_BPE, template).encode(DIALOG)
    assert ids == tuple(encode_chat(BYTE_BPE, template, DIALOG))
    assert ids == DialogEncoder(exported, ChatTemplate(exported)).encode(DIALOG)


def test_invalid_dialog_is_refused():
    encoder = DialogEncoder(BYTE_BPE, TEMPLATES["plain"])
    for turns in ([], DIALOG[:1], DIALOG[:3]):
        with pytest.raises(UserError, match="the last message must be the user's"):
            encoder.encode(turns)
    strict = with_chat_template(BYTE_BPE, TEMPLATES["plain"])
    words = "{{ messages[0]['content'] }}{% if messages|length > 1 %}{{ raise_exception('not several') }}{% endif %}"
    strict.chat_template = words
    with pytest.raises(UserError, match="chat template refuses these messages: not several"):
        DialogEncoder(strict, ChatTemplate(strict)).encode(DIALOG)


def test_long_dialog_drops_oldest_turns_and_keeps_system():
    encoder = DialogEncoder(BYTE_BPE, TEMPLATES["plain"])
    whole = encoder.encode(DIALOG)
    assert cut_to_fit(encoder, DIALOG, len(whole)) == (whole, DIALOG)
    tokens, kept = cut_to_fit(encoder, DIALOG, len(whole) - 1)
    assert kept == [DIALOG[0], DIALOG[3]]
    assert tokens == encoder.encode(kept)
    with pytest.raises(UserError, match=f"a prompt of {len(tokens)} tokens, {len(tokens) - 1} fit: shorten it"):
        cut_to_fit(encoder, DIALOG, len(tokens) - 1)


def test_chat_template_may_open_the_answer():
    tokenizer = with_chat_template(BYTE_BPE, TEMPLATES["plain"])
    opened = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ ':' }}{% endif %}"
    tokenizer.chat_template = opened
    tokens = DialogEncoder(tokenizer, ChatTemplate(tokenizer)).encode([{"role": "user", "content": "ab"}])
    assert tokenizer.decode(tokens) == "ab:"
