"""Embedding, RMSNorm and gated activations; in bfloat16 on a CPU one fused kernel each, else plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm, silu

from kernels import bf16_passes
from kernels.common.norm import Norm


def embedding(vocab_size: int, hidden_size: int) -> nn.Embedding:
    """Return an embedding. On the meta device it draws no initial values, which would import torch._dynamo there."""
    weight_VD = torch.empty(vocab_size, hidden_size)
    if weight_VD.is_meta:
        return nn.Embedding.from_pretrained(weight_VD, freeze=False)
    return nn.Embedding(vocab_size, hidden_size)


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


class ZeroCenteredRMSNorm(nn.Module):
    """RMSNorm whose weight is stored as its difference from 1, as Gemma's is. All arithmetic is in float32."""

    initial = {"weight": 0.0}

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return norm(x), or residual + norm(x), in the dtype of x."""
        if bf16_passes.fits(x):
            return bf16_passes.rms_norm(x, self.weight, self.eps, centred=True, residual=residual)
        # 1 + weight is not rounded to bfloat16: near 1 that has steps of 1/128.
        y = rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)
        return y if residual is None else residual + y


def norm_of(norm: nn.Module) -> Norm:
    """Return the parameters of an RMSNorm or LayerNorm."""
    return Norm(norm.weight, getattr(norm, "bias", None), norm.eps, isinstance(norm, ZeroCenteredRMSNorm))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up (Shazeer 2020)."""
    return bf16_passes.swiglu(gate, up) if bf16_passes.fits(gate) else silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return gelu(gate) * up, with the tanh form of GELU (Shazeer 2020)."""
    return bf16_passes.geglu(gate, up) if bf16_passes.fits(gate) else gelu(gate, approximate="tanh") * up
