"""Specification of linear_logprob: all logits at once, float32 (or float64)."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_logprob_reference(
    h_TD: Tensor, W_VD: Tensor, target_T: Tensor, temperature: float = 1.0, bias_V: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `linear_logprob`; computes in float64 when given float64, else in float32."""
    wide = torch.promote_types(h_TD.dtype, torch.float32)
    logits_TV = h_TD.to(wide) @ W_VD.to(wide).T
    if bias_V is not None:
        logits_TV = logits_TV + bias_V.to(wide)
    logits_TV = logits_TV / temperature
    logsumexp_T = logits_TV.logsumexp(-1)
    logprob_T = logits_TV.gather(-1, target_T[:, None])[:, 0] - logsumexp_T
    log_p = logits_TV - logsumexp_T[:, None]
    entropy_T = -(log_p.exp() * log_p).sum(-1)
    return logprob_T, logsumexp_T, entropy_T


def linear_logprob_pair_reference(
    h_TD: Tensor,
    W_VD: Tensor,
    target_T: Tensor,
    ref_TD: Tensor,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Same contract as `linear_logprob_pair`; the reference is a constant, W's share in it too."""
    wide = torch.promote_types(h_TD.dtype, torch.float32)

    def log_p_TV(h: Tensor, W: Tensor) -> Tensor:
        logits_TV = h.to(wide) @ W.to(wide).T
        return ((logits_TV if bias_V is None else logits_TV + bias_V.to(wide)) / temperature).log_softmax(-1)

    log_p, log_ref = log_p_TV(h_TD, W_VD), log_p_TV(ref_TD.detach(), W_VD.detach())
    ref_logprob_T = log_ref.gather(-1, target_T[:, None])[:, 0]
    kl_T = (log_p.exp() * (log_p - log_ref)).sum(-1)
    return *linear_logprob_reference(h_TD, W_VD, target_T, temperature, bias_V), ref_logprob_T, kl_T
