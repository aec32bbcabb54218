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
    usual -slope * distance differs by a constant per row, which softmax drops); scale defaults to 1/sqrt(K).
    Returns [T, H, K] in the dtype of q, differentiable in q, k and v, with the same bits every time. `cpu` runs in C++
    (or `eager` with a note, if that cannot be built), `fused` in Triton.
    """
    scale = q_THK.shape[2] ** -0.5 if scale is None else scale
    if q_THK.device.type == "cuda":
        from kernels.attention.fused import attention_triton  # imported here: triton is not installed everywhere

        return attention_triton(q_THK, k_TGK, v_TGK, cu_seqlens, lengths, slopes_H, scale)
    return attention_cpu(q_THK, k_TGK, v_TGK, cu_seqlens, lengths, slopes_H, scale)


def has_attention_after(x: Tensor) -> bool:
    """Return whether `attention_after` supports this dtype and device: a CPU with a compiler."""
    return x.device.type == "cpu" and x.dtype in DTYPES and library() is not None


def attention_after(
    q_NHK: Tensor, segments: Sequence[tuple[Tensor, Tensor]], slopes_H: Tensor | None, scale: float, out_NHK: Tensor
) -> None:
    """Attend from the last N of P tokens of a sequence whose keys and values are in several segments.

    segments are (k, v), [n, G, K] each, of its tokens in order, P in total; the result is written to out_NHK
    (contiguous). Otherwise as `attention`, bit for bit: a row depends neither on N nor on the segments. Contiguous
    float32 segments (K a multiple of 16) are read in place. No gradients; check `has_attention_after` first.
    """
    attention_after_cpu(q_NHK, segments, slopes_H, scale, out_NHK)
