"""Choosing tokens: temperature, top-k and top-p by inverse transform of one uniform a sequence.

Shapes: S sequences, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import UserError

HEAD = 512  # candidates tried before a full sort: nearly every top-p nucleus is smaller


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token. temperature 0 is greedy; top_k 0 and top_p 1 keep the whole vocabulary."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"--temperature is {self.temperature}: give 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"--top-k is {self.top_k}: give 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p is {self.top_p}: give a share above 0, up to 1")


def sample(logits_SV: Tensor, sampling: Sampling, uniform_S: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row, and its log-probability under the tempered distribution before any truncation.

    logits_SV float [S, V]; uniform_S float64 [S] in [0, 1). Returns int64 [S] and float32 [S]; for greedy choice the
    log-probability is that at temperature 1. The trainer sees the same distribution: its logits are divided by the
    temperature and never truncated.
    """
    logits_SV = logits_SV.float()
    if sampling.temperature not in (0.0, 1.0):
        logits_SV = logits_SV / sampling.temperature
    logsumexp_S = logits_SV.logsumexp(-1)
    if sampling.temperature == 0:
        token_S = logits_SV.argmax(-1)
    elif sampling.top_k == 0 and sampling.top_p == 1.0:
        token_S = _invert((logits_SV - logsumexp_S[:, None]).exp(), uniform_S)
    else:
        token_S = _sample_truncated(logits_SV, logsumexp_S, sampling, uniform_S)
    logprob_S = logits_SV.gather(1, token_S[:, None])[:, 0] - logsumexp_S
    return token_S, logprob_S


def _invert(weights_SC: Tensor, uniform_S: Tensor) -> Tensor:
    """int64 [S]: the first candidate whose cumulative weight passes uniform * total. Sums in float64.

    A float64 below 1 times the total stays below the total after rounding, so there always is one.
    """
    cumulative_SC = weights_SC.double().cumsum(-1)
    return torch.searchsorted(cumulative_SC, uniform_S[:, None] * cumulative_SC[:, -1:], right=True)[:, 0]


def _sample_truncated(logits_SV: Tensor, logsumexp_S: Tensor, sampling: Sampling, uniform_S: Tensor) -> Tensor:
    """Sample among the top_k likeliest, then among the fewest of those whose share reaches top_p."""
    vocabulary = logits_SV.shape[1]
    limit = min(sampling.top_k or vocabulary, vocabulary)
    size = min(limit, HEAD) if sampling.top_p < 1 else limit
    while True:
        top_SC, candidate_SC = logits_SV.topk(size, dim=-1)
        # top-p is a share of what top-k left: the softmax over the k likeliest.
        whole_S = logsumexp_S if limit == vocabulary else logits_SV.topk(limit, dim=-1).values.logsumexp(-1)
        weight_SC = (top_SC - whole_S[:, None]).exp()
        before_SC = weight_SC.double().cumsum(-1) - weight_SC
        if size == limit or bool((before_SC[:, -1] >= sampling.top_p).all()):
            break
        size = limit
    kept_SC = torch.where(before_SC < sampling.top_p, weight_SC, 0.0)
    return candidate_SC.gather(1, _invert(kept_SC, uniform_S)[:, None])[:, 0]
