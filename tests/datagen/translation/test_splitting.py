"""Long texts in pieces: joined exactly, cut at borders only, never inside code."""

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
def test_joined_again_it_is_the_same(text, limit):
    pieces = split_text(text, limit)
    assert pieces.join(pieces.texts) == text
    assert all(piece and piece == piece.strip() for piece in pieces.texts)
    assert all(not gap.strip() for gap in pieces.gaps)
    assert all("\n" in gap for gap in pieces.gaps[1:-1])
    # What is above the limit could not be cut.
    for piece in pieces.texts:
        assert estimate_tokens(piece) <= limit or "\n" not in piece or "```" in piece or "~~~" in piece


def test_paragraphs_stay_together_as_long_as_they_fit():
    paragraphs = [letter * 40 for letter in "abcde"]  # ten tokens each
    text = "\n\n".join(paragraphs)
    assert split_text(text, 1000).texts == (text,)
    assert split_text(text, 21).texts == ("\n\n".join(paragraphs[:2]), "\n\n".join(paragraphs[2:4]), paragraphs[4])
    assert split_text(text, 5).texts == tuple(paragraphs)
    lines = "\n".join(paragraphs)
    assert split_text(lines, 10).texts == tuple(paragraphs)
    assert split_text(f"x\n\n{lines}", 10).texts == ("x", *paragraphs)


def test_code_is_not_cut():
    code = "```python\na = 1\n\n\nb = 2\n```"
    assert split_text(f"Look:\n\n{code}\n\nGood.", 3).texts == ("Look:", code, "Good.")
    unclosed = "```\na = 1\n\nb = 2"
    assert split_text(f"Look:\n\n{unclosed}", 3).texts == ("Look:", unclosed)


def test_gaps_are_kept_and_the_model_does_not_fill_them():
    pieces = split_text("\n one \n\n\n  two\t", 1)
    assert (pieces.texts, pieces.gaps) == (("one", "two"), ("\n ", " \n\n\n  ", "\t"))
    assert pieces.join([" un\n", "deux "]) == "\n un \n\n\n  deux\t"
