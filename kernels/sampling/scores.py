"""What the Triton kernels of sampling share: scores from logits, and a row's groups combined."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scores_of(
    logits, seen, mask_eos, eos_ids, row, token, inside, words, num_eos_ids, temperature, penalty,
    row_stride, column_stride, TEMPERED: tl.constexpr,
):  # fmt: skip
    """Tempered logits and scores, float32, of one row's tokens; -inf where not `inside`.

    seen is a bitmap of the row's history or None, mask_eos bool [S] or None.
    """
    x = tl.load(logits + row * row_stride + token.to(tl.int64) * column_stride, mask=inside, other=float("-inf"))
    tempered = x.to(tl.float32)
    if TEMPERED:
        tempered = tl.div_rn(tempered, temperature)
    score = tempered
    if seen is not None:
        bits = tl.load(seen + row * words + (token >> 5), mask=inside, other=0)
        penalised = tl.where(score > 0, tl.div_rn(score, penalty), score * penalty)
        score = tl.where(((bits >> (token & 31)) & 1) == 1, penalised, score)
    if mask_eos is not None:
        masked = tl.load(mask_eos + row) != 0
        for e in range(num_eos_ids):
            score = tl.where(masked & (token == tl.load(eos_ids + e)), float("-inf"), score)
    return tempered, score


@triton.jit
def combined(top, total, G, GP: tl.constexpr):
    """Each group's largest score [GP], the row's, and each group's mass relative to the row's largest, float64 [GP].

    A mass is NaN where a score of the group is NaN or infinite.
    """
    g = tl.arange(0, GP)
    top_G = tl.load(top + g, mask=g < G, other=float("-inf"))
    sum_G = tl.load(total + g, mask=g < G, other=0.0).to(tl.float64)
    largest = tl.max(top_G, 0)
    return top_G, largest, tl.where(sum_G == 0, 0.0, sum_G * tl.exp((top_G - largest).to(tl.float64)))
