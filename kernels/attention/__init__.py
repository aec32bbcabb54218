"""Causal attention over packed sequences, or for a sequence's last tokens, with optional ALiBi and grouped heads."""

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
    window: int | None = None,
) -> Tensor:
    """Return causal attention within each sequence of a pack: [T, H, K] in the dtype of q, the same bits each time.

    q_THK [T, H, K], k_TGK and v_TGK [T, G, K] with H a multiple of G, float32, bfloat16 or float16; cu_seqlens int32
    [S+1], and lengths, the sequences' lengths on the host. slopes_H float32 [H] adds slope * key position to the scores
    (ALiBi, Press et al. 2022; the usual -slope * distance differs by a constant per row, which softmax cancels). scale
    defaults to 1/sqrt(K). With a window, a token sees the last `window` tokens only, itself included (Beltagy et al.
    2020).
    Differentiable in q, k and v. Runs in Triton on CUDA (`fused`), else in C++ (`cpu`), or in PyTorch (`eager`) in
    float16 and where the C++ cannot be built; one warning then says so.
    """
    scale = q_THK.shape[2] ** -0.5 if scale is None else scale
    assert window is None or window >= 1, window
    window = None if window is None or window >= max(lengths, default=0) else window
    if q_THK.device.type == "cuda":
        from kernels.attention.fused import attention_triton  # imported here: triton is not installed everywhere

        return attention_triton(q_THK, k_TGK, v_TGK, cu_seqlens, lengths, slopes_H, scale, window)
    return attention_cpu(q_THK, k_TGK, v_TGK, cu_seqlens, lengths, slopes_H, scale, window)


def has_attention_after(x: Tensor) -> bool:
    """Whether `attention_after` handles tensors like x: float32 or bfloat16 on a CPU, with the C++ built."""
    return x.device.type == "cpu" and x.dtype in DTYPES and library() is not None


def attention_after(
    q_NHK: Tensor,
    segments: Sequence[tuple[Tensor, Tensor]],
    slopes_H: Tensor | None,
    scale: float,
    window: int | None,
    out_NHK: Tensor,
) -> None:
    """Write to out_NHK the attention of the last N of a sequence's P tokens, with its keys and values in segments.

    segments are (k, v) pairs, [n, G, K] each, in token order, P tokens in total. out_NHK is contiguous. The results
    have the bits of `attention`: a row depends neither on N nor on the segments. Float32 segments with consecutive
    tokens adjacent in memory and K a multiple of 16 are read in place, others are copied. No gradients. Call
    `has_attention_after` first.
    """
    attention_after_cpu(q_NHK, segments, slopes_H, scale, window, out_NHK)
