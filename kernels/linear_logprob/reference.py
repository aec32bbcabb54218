"""The specification of linear_logprob: all logits at once, in float32 (or float64)."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_logprob_reference(
    h_TD: Tensor, W_VD: Tensor, target_T: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `linear_logprob` returns. Computes in float64 for float64 inputs, else in float32."""
    wide = torch.promote_types(h_TD.dtype, torch.float32)
    logits_TV = h_TD.to(wide) @ W_VD.to(wide).T / temperature
    logsumexp_T = logits_TV.logsumexp(-1)
    logprob_T = logits_TV.gather(-1, target_T[:, None])[:, 0] - logsumexp_T
    log_p = logits_TV - logsumexp_T[:, None]
    entropy_T = -(log_p.exp() * log_p).sum(-1)
    return logprob_T, logsumexp_T, entropy_T
