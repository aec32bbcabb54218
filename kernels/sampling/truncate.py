"""Top-k, top-p and min-p on CUDA, in Triton: one launch, one program a row, no sort.

The groups' largest scores bound the threshold from below, so few groups are read and few of their scores are
candidates. These are collected. The threshold is then searched among the bits of float32, which order like the numbers:
each pass over the candidates counts (top-k) or weighs (top-p) those above three keys. Shapes as in `fused`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling.scores import combined, scores_of

TILE = 4096  # scores that a program holds
LEAST_KEY = tl.constexpr(-2139095041)  # of -inf
MARGIN = tl.constexpr(1e-3)  # of the bound for top-p, for rounding


@triton.jit
def _key(x):
    """int32 numbers in the order of float32 x. 0.0 and -0.0 are one number, -inf is the least."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _number(key):
    """The float32 number of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _pass(values, count, low, high, a, b, c, top, MASS: tl.constexpr, N: tl.constexpr):
    """How many values, or with MASS the sum of e^(value - top) over those, have a key above each of a, b and c.

    Then the least and the most of the values' keys that are above `low` and at most `high`.
    """
    dtype: tl.constexpr = tl.float32 if MASS else tl.int32
    above_a, above_b, above_c = tl.zeros([N], dtype), tl.zeros([N], dtype), tl.zeros([N], dtype)
    least, most = tl.zeros([N], tl.int32) + high, tl.zeros([N], tl.int32) + (low + 1)
    for first in range(0, count, N):
        i = first + tl.arange(0, N)
        x = tl.load(values + i, mask=i < count, other=0.0)
        key = _key(x)
        amount = tl.where(i < count, tl.exp(x - top) if MASS else 1, 0).to(dtype)
        above_a += tl.where(key > a, amount, 0)
        above_b += tl.where(key > b, amount, 0)
        above_c += tl.where(key > c, amount, 0)
        inside = (i < count) & (key > low) & (key <= high)
        least, most = tl.where(inside, tl.minimum(least, key), least), tl.where(inside, tl.maximum(most, key), most)
    above_a = tl.sum(above_a.to(tl.float64), 0)
    above_b = tl.sum(above_b.to(tl.float64), 0)
    above_c = tl.sum(above_c.to(tl.float64), 0)
    return above_a, above_b, above_c, tl.min(least, 0), tl.max(most, 0)


@triton.jit
def _threshold(values, count, low, high, wanted, top, MASS: tl.constexpr, N: tl.constexpr):
    """The least key above `low` above which there is less than `wanted`. Values are above `low`, none above `high`."""
    low, high = low.to(tl.int64), high.to(tl.int64)
    while high - low > 1:
        step = tl.maximum((high - low) // 4, 1)
        a = low + step
        b, c = tl.minimum(a + step, high - 1), tl.minimum(a + 2 * step, high - 1)
        above_a, above_b, above_c, least, most = _pass(
            values, count, low.to(tl.int32), high.to(tl.int32), a.to(tl.int32), b.to(tl.int32), c.to(tl.int32),
            top, MASS, N,
        )  # fmt: skip
        low = tl.where(above_c >= wanted, c, tl.where(above_b >= wanted, b, tl.where(above_a >= wanted, a, low)))
        high = tl.where(above_a < wanted, a, tl.where(above_b < wanted, b, tl.where(above_c < wanted, c, high)))
        # The threshold is the key of a value: skip what lies between the values.
        low, high = tl.maximum(low, least.to(tl.int64) - 1), tl.minimum(high, most.to(tl.int64))
    return high.to(tl.int32)


@triton.jit
def _truncate(
    logits, seen, mask_eos, eos_ids, score_top, score_sum, kept_sum, lowest, worth, candidate,
    V, G, words, num_eos_ids, temperature, penalty, row_stride, column_stride, top_k, top_p, left_out, log_min_p,
    TEMPERED: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, GP: tl.constexpr, B: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """Write the sums of one row's kept scores by group, and its lowest kept score. left_out is 1 - top_p."""
    row, g = tl.program_id(0).to(tl.int64), tl.arange(0, GP)
    score_top += row * G
    top_G, top, mass_G = combined(score_top, score_sum + row * G, G, GP)
    total = tl.sum(mass_G, 0)
    if (total > 0) & (tl.abs(top) < float("inf")):
        # A lower bound of the threshold: as a score, and as a difference from the largest.
        bound, difference = tl.full([], float("-inf"), tl.float32), tl.full([], float("-inf"), tl.float32)
        if TOP_K:
            if top_k <= G:  # as many groups have a score of at least the k-th largest of their largest scores
                least = tl.min(tl.where(g < G, _key(top_G), _key(top)), 0)
                bound = _number(_threshold(score_top, G, least - 1, _key(top), top_k, top, False, N))
        elif TOP_P:  # all scores below it hold less than 1 - top_p
            difference = (tl.log(left_out * total / V) - MARGIN).to(tl.float32)
        else:
            difference = tl.full([], 0.0, tl.float32) + log_min_p
        read_G = (g < G) & (top_G >= bound) & (top_G - top >= difference)
        worth += row * G
        tl.store(worth + tl.cumsum(read_G.to(tl.int32), 0) - 1, g, mask=read_G)
        num_worth = tl.sum(read_G.to(tl.int32), 0)
        tl.store(kept_sum + row * G + g, tl.zeros([GP], tl.float32), mask=(g < G) & ~read_G)
        tl.debug_barrier()  # what a thread wrote, others read
        key = tl.full([], LEAST_KEY, tl.int32)
        if TOP_K or TOP_P:
            candidate += row * V
            count, least = 0, _key(top)
            for first in range(0, num_worth, N // B):
                i = tl.arange(0, N)
                place = first + i // B
                token = tl.load(worth + place, mask=place < num_worth, other=G) * B + i % B
                inside = (place < num_worth) & (token < V)
                score = scores_of(
                    logits, seen, mask_eos, eos_ids, row, token, inside, words, num_eos_ids, temperature, penalty,
                    row_stride, column_stride, TEMPERED,
                )[1]  # fmt: skip
                chosen = inside & (score >= bound) & (score - top >= difference)
                tl.store(candidate + count + tl.cumsum(chosen.to(tl.int32), 0) - 1, score, mask=chosen)
                count += tl.sum(chosen.to(tl.int32), 0)
                least = tl.minimum(least, tl.min(tl.where(chosen, _key(score), _key(top)), 0))
            tl.debug_barrier()
            key = least
            if TOP_K:
                key = _threshold(candidate, count, least - 1, _key(top), top_k, top, False, N)
                total = _pass(candidate, count, key - 1, key, key - 1, key, key, top, True, N)[0]
            if TOP_P:
                key = _threshold(candidate, count, key - 1, _key(top), top_p * total, top, True, N)
        least_kept = top
        for first in range(0, num_worth, N // B):
            place = first + tl.arange(0, N // B)
            group = tl.load(worth + place, mask=place < num_worth, other=G)
            token = group[:, None] * B + tl.arange(0, B)[None, :]
            inside = (place < num_worth)[:, None] & (token < V)
            score = scores_of(
                logits, seen, mask_eos, eos_ids, row, token, inside, words, num_eos_ids, temperature, penalty,
                row_stride, column_stride, TEMPERED,
            )[1]  # fmt: skip
            kept = inside & (_key(score) >= key) & (score - top >= log_min_p)
            own_top = tl.load(score_top + group, mask=place < num_worth, other=0.0)
            weight = tl.where(kept, tl.exp(score - own_top[:, None]), 0.0)
            tl.store(kept_sum + row * G + group, tl.sum(weight, 1), mask=place < num_worth)
            least_kept = tl.minimum(least_kept, tl.min(tl.min(tl.where(kept, score, top), 1), 0))
        tl.store(lowest + row, least_kept)
    else:  # NaN, infinity or no possible token: `_choose` sees it in the sums
        tl.store(kept_sum + row * G + g, mass_G.to(tl.float32), mask=g < G)
        tl.store(lowest + row, float("-inf"))


def truncate(
    source: tuple, score_2SG: Tensor, numbers: tuple, tempered: bool,
    top_k: int, top_p: float, log_min_p: float, group: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the groups' sums of kept scores, float32 [S, G], and each row's lowest kept score, float32 [S].

    source, score_2SG and numbers are those of `fused.sample_triton`. Takes memory of [S, V] float32 for candidates, of
    which it writes few where the distribution is sharp.
    """
    rows, vocabulary = source[0].shape
    groups = score_2SG.shape[2]
    few, device = 0 < top_k < vocabulary, score_2SG.device
    kept_SG = torch.empty(rows, groups, device=device)
    lowest_S = torch.empty(rows, device=device)
    worth_SG = torch.empty(rows, groups, dtype=torch.int32, device=device)
    candidate_SV = torch.empty(rows, vocabulary, device=device) if few or top_p < 1 else None
    _truncate[(rows,)](
        *source, *score_2SG, kept_SG, lowest_S, worth_SG, candidate_SV, *numbers,
        top_k, float(top_p), 1.0 - top_p, float(log_min_p),
        TEMPERED=tempered, TOP_K=few, TOP_P=top_p < 1, GP=triton.next_power_of_2(groups), B=group, N=TILE, num_warps=16,
    )  # fmt: skip
    return kept_SG, lowest_S
