"""Packed causal attention in plain PyTorch: one fused causal call per sequence, ALiBi as one bias per key."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# scaled_dot_product_attention takes no mask together with is_causal, and a whole mask costs [H, n, n]. The operator
# below it takes both, also float32 biases with bfloat16 queries, and grouped heads.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attention_eager(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    lengths: Sequence[int],
    slopes_H: Tensor | None,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """See `kernels.attention.attention`."""
    if not lengths:
        return q_THK.clone()  # no rows: keeps the autograd graph
    bias_1H1N = None
    if slopes_H is not None:
        bias_1H1N = slopes_H[None, :, None, None] * torch.arange(max(lengths), device=slopes_H.device)
        bias_1H1N = bias_1H1N.to(torch.promote_types(q_THK.dtype, torch.float32))
    outputs = []
    for n, *qkv in zip(lengths, *(x.split(lengths) for x in (q_THK, k_TGK, v_TGK))):
        bias = None if bias_1H1N is None else bias_1H1N[..., :n]
        if window is not None and window < n:
            before = torch.full((n, n), float("-inf"), dtype=torch.float32).tril(-window)
            bias = before if bias is None else bias + before
        out, _ = _flash(*(x.transpose(0, 1)[None] for x in qkv), 0.0, True, attn_mask=bias, scale=scale)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)
