"""RMSNorm, rotation and gated activation of bfloat16 rows on a CPU, one pass over memory forward and one backward.

PyTorch makes them of up to fifteen float32 passes each; with bfloat16 products on a matrix unit those take longer than
the products. Here all is float32 inside a pass, and rounded once. Ask `fits` first. The same bits each time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.bf16_passes.cpu import RMSNorm, Rotate, SwiGLU, library

__all__ = ["fits", "rms_norm", "rotate", "swiglu"]


def fits(x: Tensor) -> bool:
    """bfloat16 on a CPU with a compiler."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and library() is not None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 + eps) * weight over the last dimension; differentiable in x and weight, both bfloat16."""
    return RMSNorm.apply(x, weight_D, eps)


def rotate(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (i, i + K/2) of the last dimension turned by its row's angle; differentiable in x_THK.

    cos and sin float32 [T, 1, K/2].
    """
    return Rotate.apply(x_THK, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up; differentiable in both."""
    return SwiGLU.apply(gate, up)
