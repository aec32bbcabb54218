"""Specification of the passes: plain PyTorch, in the dtype of its input."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""
    return functional.rms_norm(x_TD, weight_D.shape, weight_D, eps)


def gelu(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016)."""
    return functional.gelu(x, approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up (Shazeer 2020)."""
    return functional.silu(gate) * up
