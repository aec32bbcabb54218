"""Longest common subsequence (LCS) lengths, bit-parallel: one pair in Python integers, or many pairs in uint64.

Both use the recurrence of Hyyro ("Bit-parallel LCS-length computation revisited", 2004): bit p of V is 0 where row p of
the classical table steps up, so one addition advances a whole column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_PATTERN = 64


def lcs_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the LCS length of two sequences of any lengths."""
    positions: dict[int, int] = {}
    for p, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << p
    ones = v = (1 << len(a)) - 1
    for token in b:
        u = v & positions.get(token, 0)
        v = (v + u | v - u) & ones
    return len(a) - v.bit_count()


def lcs_lengths(
    patterns: Sequence[np.ndarray], pattern_P: np.ndarray, tokens: np.ndarray, start_P: np.ndarray, length_P: np.ndarray
) -> np.ndarray:
    """Return the LCS lengths of P pairs, int64 [P].

    patterns: int32 token ids, 1 to 64 per pattern
    pattern_P: int64 [P], index of each pair's pattern
    tokens: int32, all texts concatenated; pair p's text is tokens[start_P[p] : start_P[p] + length_P[p]]
    """
    assert all(0 < len(pattern) <= MAX_PATTERN for pattern in patterns)
    table, column = _position_masks(patterns, int(tokens.max(initial=-1)) + 1)
    # Longest texts first: the pairs that are still running are always the first `active`.
    order = np.argsort(-length_P, kind="stable")
    row, start, length = pattern_P[order], start_P[order], length_P[order]
    v = np.full(len(order), ~np.uint64(0))
    active_at = np.searchsorted(-length, -np.arange(length.max(initial=0)), side="left")
    for step, active in enumerate(active_at):
        at = v[:active]
        u = at & table[row[:active], column[tokens[start[:active] + step]]]
        v[:active] = (at + u) | (at - u)
    lengths = np.empty(len(order), dtype=np.int64)
    lengths[order] = np.bitwise_count(~v)  # bits beyond a pattern stay 1: `at - u` keeps them
    return lengths


def _position_masks(patterns: Sequence[np.ndarray], vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (table, column): bit p of table[r, column[token]] is set if pattern r has the token at position p.

    Column 0 is for tokens that no pattern contains.
    """
    flat = np.concatenate(patterns)
    row = np.repeat(np.arange(len(patterns)), [len(pattern) for pattern in patterns])
    position = np.concatenate([np.arange(len(pattern)) for pattern in patterns])
    present = np.unique(flat)
    column = np.zeros(max(vocabulary_size, int(present[-1]) + 1), dtype=np.int32)
    column[present] = np.arange(1, len(present) + 1)
    table = np.zeros((len(patterns), len(present) + 1), dtype=np.uint64)
    np.bitwise_or.at(table, (row, column[flat]), np.uint64(1) << position.astype(np.uint64))
    return table, column
