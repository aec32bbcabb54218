"""Packed causal attention on CPU: one fused causal call a run of equal lengths, ALiBi folded into the head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

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
    outputs = []
    # Neighbours of equal length share a call: a pack sorted by length needs one a length, not one a sequence.
    runs = [(n, len(list(same))) for n, same in groupby(lengths)]
    sizes = [n * count for n, count in runs]
    for (n, count), q, k, v in zip(runs, q_THK.split(sizes), k_TGK.split(sizes), v_TGK.split(sizes)):
        q, k, v = (x.unflatten(0, (count, n)).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[..., :head_size]
