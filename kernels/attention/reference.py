"""The specification of packed causal attention: float32 (or float64), one masked softmax per sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_reference(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    lengths: Sequence[int],
    slopes_H: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Return what `kernels.attention.attention` returns. Computes in float64 for float64 inputs, else in float32."""
    wide = torch.promote_types(q_THK.dtype, torch.float32)
    groups = q_THK.shape[1] // k_TGK.shape[1]
    scale = q_THK.shape[2] ** -0.5 if scale is None else scale
    outputs = []
    for q, k, v in zip(q_THK.split(lengths), k_TGK.split(lengths), v_TGK.split(lengths)):
        q, k, v = (x.to(wide).transpose(0, 1) for x in (q, k, v))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        n = q.shape[1]
        scores = q @ k.transpose(1, 2) * scale
        if slopes_H is not None:
            scores = scores + slopes_H.to(wide)[:, None, None] * torch.arange(n, device=q.device, dtype=wide)
        unseen = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        if window is not None:
            unseen |= torch.ones_like(unseen).tril(-window)
        weights = scores.masked_fill(unseen, float("-inf")).softmax(-1)
        outputs.append((weights @ v).transpose(0, 1))
    return torch.cat(outputs).to(q_THK.dtype) if outputs else torch.empty_like(q_THK)
