"""Rotary position embedding (Su et al. 2021) in place, for decoding rows."""

from __future__ import annotations

from torch import Tensor

from kernels.rotary.cpu import library, rotate_cpu
from kernels.rotary.reference import rotate_reference

__all__ = ["rotate_in_place", "rotate_reference"]


def rotate_in_place(x_THK: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate each pair (i, i + K/2) of the last dimension by its row's angle.

    x_THK float32 [T, H, K], its last two dimensions dense; cos and sin float32 [T, 1, K/2]. No gradients.
    """
    if x_THK.device.type == "cpu" and library() is not None:
        rotate_cpu(x_THK, cos, sin)
    else:
        x_THK.copy_(rotate_reference(x_THK, cos, sin))
