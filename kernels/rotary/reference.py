"""Specification of rotation in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_reference(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return a new tensor with the result of `kernels.rotary.rotate_in_place`."""
    a, b = x_THK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
