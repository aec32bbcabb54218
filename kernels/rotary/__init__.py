"""Rotary position embedding (Su et al. 2021) in place, for decoding rows."""

from __future__ import annotations

from torch import Tensor

from kernels.common.norm import Norm
from kernels.rotary.cpu import library, rotate_cpu
from kernels.rotary.reference import rotate_and_write_reference, rotate_reference

__all__ = [
    "Norm",
    "rotate_and_write",
    "rotate_and_write_reference",
    "rotate_in_place",
    "rotate_reference",
]


def rotate_in_place(x_THK: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate each pair (i, i + K/2) of the last dimension by its row's angle.

    x_THK float32 [T, H, K], its last two dimensions dense; cos and sin float32 [T, 1, K/2]. No gradients.
    """
    if x_THK.device.type == "cpu" and library() is not None:
        rotate_cpu(x_THK, cos, sin)
    else:
        x_THK.copy_(rotate_reference(x_THK, cos, sin))


def rotate_and_write(
    q_THK: Tensor | None,
    k_TGK: Tensor,
    v_TGK: Tensor,
    rotation: tuple[Tensor, Tensor] | None = None,
    norms: tuple[Norm, Norm] | None = None,
    pages: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> None:
    """On CUDA in one kernel: norms of queries and keys, their rotation, and keys and values to their pages.

    q_THK [T, H, K], k_TGK and v_TGK [T, G, K], float32, bfloat16 or float16, the last dimension dense. norms are the
    RMSNorms of queries and keys over K. rotation is cos and sin, float32 [T, 1, K/2]: the pairs are (i, i + K/2).
    Arithmetic is in float32 and rounded once. q is overwritten; without norms and rotation it may be None.

    pages are k_PGNK, v_PGNK [P, G, N, K], page_T and slot_T, int64 [T]: keys and values are written to slot slot_T[t]
    of page page_T[t], and k is left as it is. Without pages, k is overwritten. No gradients.
    """
    from kernels.rotary.fused import rotate_and_write_triton  # imported here: triton is not installed everywhere

    rotate_and_write_triton(q_THK, k_TGK, v_TGK, rotation, norms, pages)
