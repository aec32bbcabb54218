"""Specification of the passes: plain PyTorch, in the dtype of its input."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, centred: bool = False) -> Tensor:
    """x / sqrt(mean of x^2 + eps) * weight over the last dimension (Zhang and Sennrich 2019); centred: weight + 1."""
    return functional.rms_norm(x_TD, weight_D.shape, weight_D + float(centred), eps)


def gelu(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016)."""
    return functional.gelu(x, approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up (Shazeer 2020)."""
    return functional.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up, with the tanh form of GELU (Shazeer 2020)."""
    return gelu(gate) * up
