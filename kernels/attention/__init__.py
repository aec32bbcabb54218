"""Causal attention over packed sequences, with optional ALiBi and grouped key/value heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kernels.attention.cpu import attention_cpu
from kernels.attention.reference import attention_reference

__all__ = ["attention", "attention_reference"]


def attention(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    slopes_H: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend causally within each sequence of a pack.

    q_THK [T, H, K], k_TGK and v_TGK [T, G, K] with H a multiple of G, float32 or bfloat16; cu_seqlens int32 [S+1];
    lengths the same on the host; slopes_H float32 [H] adds slope * key position to the scores (Press et al. 2022; the
    usual -slope * distance differs by a constant a row, which softmax drops); scale defaults to 1/sqrt(K).
    Returns [T, H, K] in the dtype of q, differentiable in q, k and v; the same bits each time. `cpu` runs it in C++
    (or `eager` where that cannot be built, which is said once), `fused` in Triton.
    """
    scale = q_THK.shape[2] ** -0.5 if scale is None else scale
    if q_THK.device.type == "cuda":
        from kernels.attention.fused import attention_triton  # imported here: triton is not installed everywhere

        return attention_triton(q_THK, k_TGK, v_TGK, cu_seqlens, lengths, slopes_H, scale)
    return attention_cpu(q_THK, k_TGK, v_TGK, cu_seqlens, lengths, slopes_H, scale)
