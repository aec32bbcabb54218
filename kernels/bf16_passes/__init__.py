"""RMSNorm, rotation and gated activations of bfloat16 rows on a CPU, one pass over memory forward and one backward.

PyTorch takes up to fifteen float32 passes for each; with bfloat16 products on a matrix unit, that is longer than the
products. Here each is one pass, float32 inside, rounded once. Check `fits` first. Equal inputs give equal bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.bf16_passes.cpu import Gated, RMSNorm, Rotate, library

__all__ = ["fits", "geglu", "rms_norm", "rotate", "swiglu"]


def fits(x: Tensor) -> bool:
    """Return whether x is bfloat16 on a CPU with a compiler."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and library() is not None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, centred: bool = False, residual: Tensor | None = None) -> Tensor:
    """Return residual + x / sqrt(mean of x^2 + eps) * weight over the last dimension, rounded once, shape of x.

    centred: weight + 1, not rounded, in place of weight. Differentiable in x, weight and residual, all bfloat16.
    """
    return RMSNorm.apply(x, weight_D, eps, float(centred), residual)


def rotate(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + K/2) of the last dimension by its row's angle; differentiable in x_THK.

    cos and sin float32 [T, 1, K/2].
    """
    return Rotate.apply(x_THK, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return gate * sigmoid(gate) * up; differentiable in both."""
    return Gated.apply("swiglu", gate, up)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return gelu(gate) * up, with the tanh form of GELU; differentiable in both."""
    return Gated.apply("geglu", gate, up)
