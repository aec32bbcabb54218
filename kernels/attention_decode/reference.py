"""The specification of attention over a paged cache: float32 (or float64), one softmax per row."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_decode_reference(
    q_SHK: Tensor,
    k_PGNK: Tensor,
    v_PGNK: Tensor,
    table_SB: Tensor,
    length_S: Tensor,
    slopes_H: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Return what `kernels.attention_decode.attention_decode` returns. Takes no groups: they change no result."""
    wide = torch.promote_types(q_SHK.dtype, torch.float32)
    num_heads, head_size = q_SHK.shape[1:]
    groups = num_heads // k_PGNK.shape[1]
    scale = head_size**-0.5 if scale is None else scale
    out_SHK = torch.empty_like(q_SHK, memory_format=torch.contiguous_format)
    for s, length in enumerate(length_S.tolist()):
        pages = table_SB[s].long()[: -(-length // k_PGNK.shape[2])]
        k_HNK, v_HNK = (
            x[pages].transpose(0, 1).flatten(1, 2)[:, :length].to(wide).repeat_interleave(groups, 0)
            for x in (k_PGNK, v_PGNK)
        )
        scores_HN = (k_HNK @ q_SHK[s].to(wide)[:, :, None])[..., 0] * scale
        if slopes_H is not None:
            positions_N = torch.arange(length, device=q_SHK.device, dtype=wide)
            scores_HN = scores_HN + slopes_H.to(wide)[:, None] * positions_N
        if window is not None:
            scores_HN[:, : max(0, length - window)] = float("-inf")
        out_SHK[s] = (scores_HN.softmax(-1)[:, None] @ v_HNK)[:, 0].to(q_SHK.dtype)
    return out_SHK
