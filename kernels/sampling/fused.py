"""Sampling on CUDA, in Triton: two launches, and one read of the logits, where nothing is truncated.

Shapes: S rows, V vocabulary, N tokens of history, E ids that end a response, G groups of GROUP tokens. `_summarize`
reads all logits once and writes each group's largest score and its sum of e^(score - largest). `_choose`, one program a
row, takes the group from these and the token from the group's scores. With top-k, top-p or min-p, `truncate` between
them writes the sums of the kept scores. The tokens of a history are marked in a bitmap before, in two more launches.
The host waits for nothing, and every sum has a fixed order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling.scores import combined, scores_of
from kernels.sampling.truncate import truncate

GROUP = 256  # tokens
TILE = 4096  # tokens that a program of `_summarize` reads


@triton.jit
def _mark(history, seen, width, words, row_stride, column_stride, N: tl.constexpr):
    """Set the bits of a row's tokens in its `words` of 32 bits."""
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * N + tl.arange(0, N)
    token = tl.load(history + row * row_stride + i.to(tl.int64) * column_stride, mask=i < width, other=-1)
    bit = tl.full([N], 1, tl.int32) << (token & 31).to(tl.int32)
    tl.atomic_or(seen + row * words + (token >> 5), bit, mask=token >= 0)


@triton.jit
def _summarize(
    logits, seen, mask_eos, eos_ids, tempered_top, tempered_sum, score_top, score_sum, V, G, words, num_eos_ids,
    temperature, penalty, row_stride, column_stride,
    TEMPERED: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Write the largest and the sum of R groups of B tokens: of tempered logits, and of scores where they differ."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1) * R + tl.arange(0, R)
    token = group[:, None] * B + tl.arange(0, B)[None, :]
    tempered, score = scores_of(
        logits, seen, mask_eos, eos_ids, row, token, token < V, words, num_eos_ids, temperature, penalty,
        row_stride, column_stride, TEMPERED,
    )  # fmt: skip
    at = row * G + group
    _write_summary(tempered, tempered_top + at, tempered_sum + at, group < G)
    if seen is not None or mask_eos is not None:
        _write_summary(score, score_top + at, score_sum + at, group < G)


@triton.jit
def _write_summary(score_RB, top, total, inside):
    top_R = tl.max(score_RB, 1)
    base_R = tl.where(top_R > float("-inf"), top_R, 0.0)
    tl.store(top, top_R, mask=inside)
    tl.store(total, tl.sum(tl.exp(score_RB - base_R[:, None]), 1), mask=inside)  # NaN if a score is NaN or infinite


@triton.jit
def _choose(
    logits, seen, mask_eos, eos_ids, uniform, tempered_top, tempered_sum, score_top, kept_sum, lowest,
    token_out, logprob_out, logsumexp_out, V, G, words, num_eos_ids, temperature, penalty, row_stride, column_stride,
    TEMPERED: tl.constexpr, GREEDY: tl.constexpr, GP: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Write one row's token, its log-probability and the logsumexp."""
    row, g = tl.program_id(0).to(tl.int64), tl.arange(0, GP)
    _, top, mass_G = combined(tempered_top + row * G, tempered_sum + row * G, G, GP)
    logsumexp = (top.to(tl.float64) + tl.log(tl.sum(mass_G, 0))).to(tl.float32)
    top_G, top, mass_G = combined(score_top + row * G, kept_sum + row * G, G, GP)
    total = tl.sum(mass_G, 0)
    if GREEDY:
        group = tl.min(tl.where(top_G == top, g, GP - 1), 0)
        wanted = total
    else:
        wanted = tl.load(uniform + row) * total
        until_G = tl.cumsum(mass_G, 0)
        # Where rounding leaves a rest after the last mass, take the last group of positive mass.
        group = tl.min(tl.where((until_G > wanted) & (mass_G > 0), g, GP), 0)
        group = tl.minimum(group, tl.max(tl.where(mass_G > 0, g, 0), 0))
        wanted -= tl.sum(tl.where(g == group - 1, until_G, 0.0), 0)
    # Inside the group, weights are relative to its own largest score.
    i = tl.arange(0, B)
    token = group * B + i
    own_top = tl.sum(tl.where(g == group, top_G, 0.0), 0)
    tempered_B, score_B = scores_of(
        logits, seen, mask_eos, eos_ids, row, token, token < V, words, num_eos_ids, temperature, penalty,
        row_stride, column_stride, TEMPERED,
    )  # fmt: skip
    if GREEDY:
        index = tl.min(tl.where(score_B == own_top, i, B - 1), 0)
    else:
        weight_B = tl.exp(score_B - own_top)
        if lowest is not None:
            weight_B = tl.where(score_B >= tl.load(lowest + row), weight_B, 0.0)
        until_B = tl.cumsum(weight_B.to(tl.float64), 0) * tl.exp((own_top - top).to(tl.float64))
        index = tl.min(tl.where((until_B > wanted) & (weight_B > 0), i, B), 0)
        index = tl.minimum(index, tl.max(tl.where(weight_B > 0, i, 0), 0))
    logprob = tl.sum(tl.where(i == index, tempered_B, 0.0), 0) - logsumexp
    possible = (total > 0) & (tl.abs(logsumexp) < float("inf"))
    tl.store(token_out + row, tl.where(possible, group * B + index, 0).to(tl.int64))
    tl.store(logprob_out + row, tl.where(possible, logprob, float("nan")))
    tl.store(logsumexp_out + row, logsumexp)


def sample_triton(
    logits_SV: Tensor,
    uniform_S: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    history_SN: Tensor | None = None,
    mask_eos_S: Tensor | None = None,
    eos_ids_E: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.sampling.sample_rows`."""
    rows, vocabulary = logits_SV.shape
    device, greedy = logits_SV.device, temperature == 0
    token_S = torch.empty(rows, dtype=torch.int64, device=device)
    logprob_S, logsumexp_S = torch.empty(2, rows, device=device)
    if not rows:
        return token_S, logprob_S, logsumexp_S
    uniform_S, mask_eos_S, eos_ids_E = (x if x is None else x.contiguous() for x in (uniform_S, mask_eos_S, eos_ids_E))
    groups, words = triton.cdiv(vocabulary, GROUP), triton.cdiv(vocabulary, 32)
    seen_SW = None
    if repetition_penalty != 1.0 and history_SN is not None:
        seen_SW = torch.zeros(rows, words, dtype=torch.int32, device=device)
        width = history_SN.shape[1]
        _mark[(rows, triton.cdiv(width, GROUP))](history_SN, seen_SW, width, words, *history_SN.stride(), N=GROUP)
    changed = seen_SW is not None or mask_eos_S is not None
    tempered_2SG = torch.empty(2, rows, groups, device=device)
    score_2SG = torch.empty_like(tempered_2SG) if changed else tempered_2SG
    source = (logits_SV, seen_SW, mask_eos_S, eos_ids_E)
    sizes = (words, 0 if mask_eos_S is None else len(eos_ids_E), float(temperature), float(repetition_penalty))
    numbers = (vocabulary, groups, *sizes, *logits_SV.stride())
    tempered = temperature not in (0.0, 1.0)
    _summarize[(rows, triton.cdiv(vocabulary, TILE))](
        *source, *tempered_2SG, *score_2SG, *numbers, TEMPERED=tempered, R=TILE // GROUP, B=GROUP, num_warps=8
    )
    top_SG, kept_SG = score_2SG
    lowest_S = None
    if not greedy and (0 < top_k < vocabulary or top_p < 1 or min_p > 0):
        log_min_p = math.log(min_p) if min_p > 0 else -math.inf
        kept_SG, lowest_S = truncate(source, score_2SG, numbers, tempered, top_k, top_p, log_min_p, GROUP)
    _choose[(rows,)](
        *source, uniform_S, *tempered_2SG, top_SG, kept_SG, lowest_S, token_S, logprob_S, logsumexp_S, *numbers,
        TEMPERED=tempered, GREEDY=greedy, GP=triton.next_power_of_2(groups), B=GROUP,
    )  # fmt: skip
    return token_S, logprob_S, logsumexp_S
