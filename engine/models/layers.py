"""RMSNorm and SwiGLU, each one fused kernel for bfloat16 on a CPU and plain PyTorch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from kernels import bf16_passes


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if bf16_passes.fits(x):
            return bf16_passes.rms_norm(x, self.weight, self.eps)
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up (Shazeer 2020)."""
    return bf16_passes.swiglu(gate, up) if bf16_passes.fits(gate) else silu(gate) * up
