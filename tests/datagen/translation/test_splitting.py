"""Tests of splitting long texts into chunks: joined exactly, split at borders only, never inside code."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datagen.api.pricing import estimate_tokens
from datagen.translation.splitting import split_text

TEXTS = st.text(alphabet="ab. \n\t`~é", max_size=200) | st.lists(
    st.sampled_from(["word " * 9, "\n\n", "\n", "  \n \n", "```\ncode\n\nmore\n```", "- item\n", "नेपाली पाठ", " "]),
    max_size=20,
).map("".join)


@given(TEXTS, st.integers(1, 60))
def test_joining_the_chunks_restores_the_text(text, limit):
    chunks = split_text(text, limit)
    assert chunks.join(chunks.texts) == text
    assert all(chunk and chunk == chunk.strip() for chunk in chunks.texts)
    assert all(not gap.strip() for gap in chunks.gaps)
    assert all("\n" in gap for gap in chunks.gaps[1:-1])
    # A chunk above the limit has no border to split at.
    for chunk in chunks.texts:
        assert estimate_tokens(chunk) <= limit or "\n" not in chunk or "```" in chunk or "~~~" in chunk


def test_chunks_are_as_long_as_the_limit_allows():
    paragraphs = [letter * 40 for letter in "abcde"]  # ten tokens each
    text = "\n\n".join(paragraphs)
    assert split_text(text, 1000).texts == (text,)
    assert split_text(text, 21).texts == ("\n\n".join(paragraphs[:2]), "\n\n".join(paragraphs[2:4]), paragraphs[4])
    assert split_text(text, 5).texts == tuple(paragraphs)
    lines = "\n".join(paragraphs)
    assert split_text(lines, 10).texts == tuple(paragraphs)
    assert split_text(f"x\n\n{lines}", 10).texts == ("x", *paragraphs)


def test_code_is_not_split():
    code = "```python\na = 1\n\n\nb = 2\n```"
    assert split_text(f"Look:\n\n{code}\n\nGood.", 3).texts == ("Look:", code, "Good.")
    unclosed = "```\na = 1\n\nb = 2"
    assert split_text(f"Look:\n\n{unclosed}", 3).texts == ("Look:", unclosed)


def test_join_keeps_the_gaps_and_strips_the_texts():
    chunks = split_text("\n one \n\n\n  two\t", 1)
    assert (chunks.texts, chunks.gaps) == (("one", "two"), ("\n ", " \n\n\n  ", "\t"))
    assert chunks.join([" un\n", "deux "]) == "\n un \n\n\n  deux\t"
