"""The steps per token, apart from the walks over the vocabulary, in plain PyTorch: target logits, results, factors.

The target's logit is a float32 dot product of two rows. It also replaces the walk's own value in the sums: from two
different roundings, the logprob of a confident token could come out above 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.common.codes import Codes


class Results(NamedTuple):
    """float32 [T] each; the logsumexp is also given in two parts, a maximum and the rest."""

    logprob_T: Tensor
    logsumexp_T: Tensor
    entropy_T: Tensor
    top_T: Tensor
    log_sum_T: Tensor


def rows_of(W_VD: Tensor | Codes, which: slice | Tensor) -> Tensor:
    """Return some rows of W, dequantised if they are codes."""
    return W_VD.rows(which).values() if isinstance(W_VD, Codes) else W_VD[which]


def row_dots(h_TD: Tensor, W_VD: Tensor | Codes, target_T: Tensor) -> Tensor:
    """Return h_t . W[target_t], float32 [T]. Gathers 1 MiB of rows of W at a time."""
    rows = max(1, (1 << 18) // W_VD.shape[1])
    wide = torch.promote_types(h_TD.dtype, torch.float32)
    pairs = zip(h_TD.split(rows), target_T.split(rows))
    return torch.cat([torch.linalg.vecdot(h.to(wide), rows_of(W_VD, target).to(wide)) for h, target in pairs])


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """Return weight * x, and 0 where weight is 0, even if x is infinite there."""
    return torch.where(weight > 0, weight * x, 0)


def results_of(totals_3T: Tensor, walked_T: Tensor, dots_T: Tensor, scale: float) -> Results:
    """Return the results from totals, in float64 until the end.

    totals_3T as `eager` defines them, walked_T the walk's own logits of the targets, dots_T those of `row_dots`.
    """
    m, s, q = totals_3T
    exact = dots_T.double() * scale
    # Replace the walk's target logit by the exact one in all three totals.
    top = torch.maximum(m, exact)
    old, before, after = (m - top).exp(), (walked_T - top).exp(), (exact - top).exp()
    total = (s * old - before + after).maximum(after)
    first = (q + s * (m - top)) * old - _times(before, walked_T - top) + _times(after, exact - top)
    log_sum = total.log()
    logsumexp, short = top + log_sum, top.float()
    columns = exact - top - log_sum, logsumexp, log_sum - first / total, short, logsumexp - short
    return Results(*(column.float() for column in columns))


def factors(results: Results, gradients: tuple[Tensor | None, ...], scale: float) -> tuple[Tensor, Tensor]:
    """Return per_token_4T of `eager.gradient`, and the gradients of the targets' logits, float32 [T].

    gradients are those of logprob, logsumexp and entropy, None for 0.
    """
    logprob, _, entropy, top, log_sum = results
    g_logprob, g_logsumexp, g_entropy = (torch.zeros_like(logprob) if g is None else g for g in gradients)
    # d logprob / dz_j = [j = target] - p_j; d logsumexp / dz_j = p_j; d entropy / dz_j = -p_j (log p_j + entropy).
    # Together p_j (a + b log p_j), and at the target g_logprob more.
    a, b = g_logsumexp - g_entropy * entropy, -g_entropy
    at_target = a + b * logprob.clamp(min=-1e4)
    # -expm1(log p) for 1 - p: a confident token loses no digits.
    target_dz_T = scale * (at_target * logprob.exp() - g_logprob * logprob.expm1())
    return torch.stack([top, log_sum, scale * (a - g_logprob), scale * b]), target_dz_T
