"""Packed causal attention on CPU: one fused causal call a sequence, ALiBi folded into the head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from kernels.attention.fold import EXTRA, fold_alibi


def attention_cpu(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    lengths: Sequence[int],
    slopes_H: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `kernels.attention.attention`."""
    head_size = q_THK.shape[2]
    scale = head_size**-0.5 if scale is None else scale
    if slopes_H is not None:
        positions_T = torch.cat([torch.arange(n, device=q_THK.device) for n in lengths])
        q_THK, k_TGK = fold_alibi(q_THK, k_TGK, positions_T, slopes_H, scale)
        v_TGK = pad(v_TGK, (0, EXTRA))  # the fused kernel wants one head size
    grouped = q_THK.shape[1] != k_TGK.shape[1]
    outputs = [
        scaled_dot_product_attention(
            q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None],
            is_causal=True, scale=scale, enable_gqa=grouped,
        )[0].transpose(0, 1)
        for q, k, v in zip(q_THK.split(lengths), k_TGK.split(lengths), v_TGK.split(lengths))
    ]  # fmt: skip
    return torch.cat(outputs)[..., :head_size]
