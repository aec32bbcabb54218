"""attention_decode in plain PyTorch, all rows at once. Runs where nothing faster can be built."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_decode_eager(
    q_SHK: Tensor,
    k_PGNK: Tensor,
    v_PGNK: Tensor,
    table_SB: Tensor,
    length_S: Tensor,
    slopes_H: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """See `kernels.attention_decode.attention_decode`. Copies every row's pages, shared ones once per row."""
    num_rows, num_heads, head_size = q_SHK.shape
    num_kv_heads, page_size = k_PGNK.shape[1:3]
    scale = head_size**-0.5 if scale is None else scale
    wide = torch.promote_types(q_SHK.dtype, torch.float32)
    positions_N = torch.arange(table_SB.shape[1] * page_size, device=q_SHK.device)
    visible_SN = positions_N < length_S[:, None]
    pages_SB = torch.where(visible_SN[:, ::page_size], table_SB, table_SB[:, :1]).long()
    if window is not None:
        visible_SN &= positions_N >= length_S[:, None] - window
    # [S, B, G, N, K] -> [S, G, B * N, K]
    k_SGNK, v_SGNK = (x[pages_SB].transpose(1, 2).flatten(2, 3).to(wide) for x in (k_PGNK, v_PGNK))
    q_SGJK = q_SHK.to(wide).unflatten(1, (num_kv_heads, -1))
    scores_SGJN = q_SGJK @ k_SGNK.transpose(2, 3) * scale
    if slopes_H is not None:
        # Positions relative to the row's last keep the bias small where the weights are large.
        distance_SN = (positions_N - length_S[:, None] + 1)[:, None, None]
        scores_SGJN = scores_SGJN + slopes_H.view(num_kv_heads, -1, 1) * distance_SN
    weights_SGJN = scores_SGJN.masked_fill(~visible_SN[:, None, None], float("-inf")).softmax(-1)
    # Values after a row's length may be anything, and 0 * NaN is NaN.
    v_SGNK = v_SGNK.masked_fill(~visible_SN[:, None, :, None], 0.0)
    return (weights_SGJN @ v_SGNK).reshape(num_rows, num_heads, head_size).to(q_SHK.dtype)
