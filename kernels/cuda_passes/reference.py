"""Specification of the passes on CUDA: plain PyTorch in float32 (or float64), rounded where a result is stored."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.common.norm import Norm


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _norm(x_TD: Tensor, norm: Norm) -> Tensor:
    """`norm` of wide rows, not rounded."""
    weight_D = norm.weight_D.to(x_TD) + float(norm.centred)
    if norm.bias_D is None:
        return functional.rms_norm(x_TD, weight_D.shape, weight_D, norm.eps)
    return functional.layer_norm(x_TD, weight_D.shape, weight_D, norm.bias_D.to(x_TD), norm.eps)


def add_norm_reference(
    h_TD: Tensor,
    x_TD: Tensor | None,
    norm: Norm | None,
    x_norm: Norm | None = None,
    next_bias_D: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See `kernels.cuda_passes.add_norm`."""
    r_TD = h_TD
    if x_TD is not None:
        x_TD = _wide(x_TD) if x_norm is None else _norm(_wide(x_TD), x_norm)
        r_TD = (_wide(h_TD) + x_TD).to(h_TD.dtype)
    y_TD = None if norm is None else _norm(_wide(r_TD), norm).to(h_TD.dtype)
    return r_TD if next_bias_D is None else (_wide(r_TD) + next_bias_D).to(h_TD.dtype), y_TD


def gated_reference(activation: str, gate_TN: Tensor, up_TN: Tensor) -> Tensor:
    """See `kernels.cuda_passes.gated`."""
    gate_TN, wide_up_TN = _wide(gate_TN), _wide(up_TN)
    if activation == "swiglu":
        return (functional.silu(gate_TN) * wide_up_TN).to(up_TN.dtype)
    return (functional.gelu(gate_TN, approximate="tanh") * wide_up_TN).to(up_TN.dtype)


def gelu_reference(x_TN: Tensor) -> Tensor:
    """See `kernels.cuda_passes.gelu`."""
    return functional.gelu(_wide(x_TN), approximate="tanh").to(x_TN.dtype)
