"""Causal attention over packed sequences, or of a sequence's last tokens, with optional ALiBi and grouped heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kernels.attention.cpu import DTYPES, attention_after_cpu, attention_cpu, library
from kernels.attention.reference import attention_reference

__all__ = ["attention", "attention_after", "attention_reference", "has_attention_after"]


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


def has_attention_after(x: Tensor) -> bool:
    """Whether `attention_after` takes tensors of this dtype on this device: on a CPU that has a compiler."""
    return x.device.type == "cpu" and x.dtype in DTYPES and library() is not None


def attention_after(
    q_NHK: Tensor, segments: Sequence[tuple[Tensor, Tensor]], slopes_H: Tensor | None, scale: float, out_NHK: Tensor
) -> None:
    """Attention of the last N of P tokens of one sequence whose keys and values may lie in several places.

    segments are (k, v), [n, G, K] each, of its tokens in order, P together; the result is written to out_NHK,
    contiguous. Otherwise as `attention`, and with its bits: a row depends neither on N nor on how keys are cut. Float32
    segments with token behind token (and K a multiple of 16) are read in place. No gradients; ask
    `has_attention_after` first.
    """
    attention_after_cpu(q_NHK, segments, slopes_H, scale, out_NHK)
