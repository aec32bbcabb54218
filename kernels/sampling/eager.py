"""Sampling in plain PyTorch, where the C++ cannot be built.

Shapes: S rows, V vocabulary, N tokens of history, E ids that end a response, C candidates, B blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

HEAD = 512  # candidates sorted before a full sort: nearly every top-p nucleus is smaller
BLOCK = 1024


def sample_eager(
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
    tempered_SV = logits_SV.float()
    if temperature not in (0.0, 1.0):
        tempered_SV = tempered_SV / temperature
    logsumexp_S = tempered_SV.logsumexp(-1)
    score_SV = tempered_SV
    if repetition_penalty != 1.0:
        score_SV = _penalize(score_SV, history_SN, repetition_penalty)
    if mask_eos_S is not None:
        score_SV = _mask_eos(score_SV, mask_eos_S, eos_ids_E)
    if temperature == 0:
        token_S = score_SV.argmax(-1)
    elif top_k > 0 or top_p < 1 or min_p > 0:
        token_S = _sample_truncated(score_SV, uniform_S, top_k, top_p, min_p)
    else:
        token_S = _invert((score_SV - score_SV.amax(-1, keepdim=True)).exp(), uniform_S)
    # NaN, infinity or no possible token: mark by a NaN log-probability.
    possible_S = score_SV.amax(-1).isfinite()
    token_S = torch.where(possible_S, token_S, 0)
    logprob_S = tempered_SV.gather(1, token_S[:, None])[:, 0] - logsumexp_S
    return token_S, logprob_S.masked_fill(~possible_S, torch.nan), logsumexp_S


def _penalize(score_SV: Tensor, history_SN: Tensor, penalty: float) -> Tensor:
    """Return scores with the penalty applied once per token of the history. (Commutes with the temperature.)"""
    present_SN = history_SN >= 0
    # Replace -1 by any token of the row's history: writing its penalised score twice changes nothing.
    stand_in_S1 = history_SN.amax(-1, keepdim=True).clamp(min=0)
    token_SN = torch.where(present_SN, history_SN, stand_in_S1)
    old_SN = score_SV.gather(1, token_SN)
    new_SN = torch.where(old_SN > 0, old_SN / penalty, old_SN * penalty)
    some_S1 = present_SN.any(-1, keepdim=True)
    return score_SV.scatter(1, token_SN, torch.where(some_S1, new_SN, old_SN))


def _mask_eos(score_SV: Tensor, mask_eos_S: Tensor, ids_E: Tensor) -> Tensor:
    old_SE = score_SV[:, ids_E]
    score_SV = score_SV.clone()
    score_SV[:, ids_E] = old_SE.masked_fill(mask_eos_S[:, None], -torch.inf)
    return score_SV


def _invert(weights_SC: Tensor, uniform_S: Tensor) -> Tensor:
    """Return the first candidate with a cumulative weight above uniform * total, int64 [S]. Sums in float64.

    Finds the block first, then the index in it, because the cumulative sum of a large vocabulary is slow. A float64
    below 1 times a total stays below the total after rounding, so a block always exists. Within the block rounding may
    differ; then the last candidate of positive weight is taken. NaN weights give any candidate.
    """
    count = weights_SC.shape[1]
    weights_SBC = pad(weights_SC, (0, -count % BLOCK)).unflatten(1, (-1, BLOCK))
    cumulative_SB = weights_SBC.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted_S1 = uniform_S[:, None] * cumulative_SB[:, -1:]
    # A search for NaN returns an index past the end, and an index out of range kills a process on a GPU.
    block_S1 = torch.searchsorted(cumulative_SB, wanted_S1, right=True).clamp(max=cumulative_SB.shape[1] - 1)
    before_S1 = pad(cumulative_SB, (1, 0)).gather(1, block_S1)
    inside_SC = weights_SBC.gather(1, block_S1[..., None].expand(-1, -1, BLOCK))[:, 0].double().cumsum(-1)
    wanted_S1 = torch.minimum(wanted_S1 - before_S1, inside_SC[:, -1:] * (1 - 2.0**-52))
    return (block_S1 * BLOCK + torch.searchsorted(inside_SC, wanted_S1, right=True))[:, 0].clamp(max=count - 1)


def _sample_truncated(score_SV: Tensor, uniform_S: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Sample from the tokens that top-k, top-p and min-p keep. Sorts HEAD candidates first, all only if needed."""
    vocabulary = score_SV.shape[1]
    weight_SV = (score_SV - score_SV.amax(-1, keepdim=True)).exp()
    threshold_S1 = weight_SV.new_full((weight_SV.shape[0], 1), min_p)
    if 0 < top_k < vocabulary:
        kth_S1 = weight_SV.topk(top_k, dim=-1).values[:, -1:]
        weight_SV = weight_SV.masked_fill(weight_SV < kth_S1, 0.0)
        threshold_S1 = torch.maximum(threshold_S1, kth_S1)
    wanted_S1 = top_p * weight_SV.sum(-1, keepdim=True, dtype=torch.float64)
    size = min(HEAD, vocabulary)
    while True:
        top_SC, candidate_SC = weight_SV.topk(size, dim=-1)
        likelier_SC = top_SC.double().cumsum(-1) - top_SC
        in_nucleus_SC = (likelier_SC < wanted_S1) | (top_p == 1)
        nucleus_S1 = top_SC.masked_fill(~in_nucleus_SC, torch.inf).amin(-1, keepdim=True)
        lowest_S1 = torch.maximum(threshold_S1, nucleus_S1)
        # If the last candidate is not kept, then all kept tokens, ties included, are among the candidates.
        if size == vocabulary or bool((top_SC[:, -1:] < lowest_S1).all()):
            break
        size = vocabulary
    candidate_SC, order_SC = candidate_SC.sort(-1)
    kept_SC = top_SC.masked_fill(top_SC < lowest_S1, 0.0).gather(1, order_SC)
    return candidate_SC.gather(1, _invert(kept_SC, uniform_S)[:, None])[:, 0]
