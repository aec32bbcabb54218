"""Tests of bit-parallel LCS lengths against the classical table."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.text.lcs import MAX_PATTERN, lcs_length, lcs_lengths


def _lcs_by_table(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if x == y else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def _tokens(max_size, min_size=0):
    return st.lists(st.integers(0, 5), min_size=min_size, max_size=max_size)


def test_lcs_length_by_hand():
    assert lcs_length([1, 2, 3, 4], [2, 4, 3]) == 2
    assert lcs_length([7, 7, 7], [7, 7]) == 2
    assert lcs_length([], [1]) == lcs_length([1], []) == 0


@given(_tokens(100), _tokens(100))
def test_lcs_length_matches_the_table(a, b):
    assert lcs_length(a, b) == _lcs_by_table(a, b)


@settings(deadline=None)
@given(st.lists(_tokens(MAX_PATTERN, 1), min_size=1, max_size=4), st.lists(_tokens(90), min_size=1, max_size=5))
def test_lcs_lengths_match_the_table(patterns, texts):
    pattern_P, text_P = (np.ravel(x) for x in np.meshgrid(range(len(patterns)), range(len(texts)), indexing="ij"))
    length = np.array([len(text) for text in texts])
    tokens = np.array([token for text in texts for token in text], dtype=np.int32)
    got = lcs_lengths(
        [np.array(pattern, dtype=np.int32) for pattern in patterns],
        pattern_P,
        tokens,
        (np.cumsum(length) - length)[text_P],
        length[text_P],
    )
    assert got.tolist() == [_lcs_by_table(patterns[p], texts[t]) for p, t in zip(pattern_P, text_P, strict=True)]


def test_pattern_of_64_tokens():
    pattern = np.arange(MAX_PATTERN, dtype=np.int32)
    got = lcs_lengths([pattern], np.zeros(2, int), pattern[::-1].copy(), np.array([0, 0]), np.array([MAX_PATTERN, 3]))
    assert got.tolist() == [1, 1]
    same = lcs_lengths([pattern], np.zeros(1, int), pattern, np.array([0]), np.array([MAX_PATTERN]))
    assert same.tolist() == [MAX_PATTERN]
