"""The specification of coded_linear: dequantise, then plain PyTorch in float32 (or float64), rounded once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.common.codes import Codes


def coded_linear_reference(x_TI: Tensor, weight: Codes, bias_N: Tensor | None = None) -> Tensor:
    """Return what `kernels.coded_linear.coded_linear` returns."""
    wide = torch.promote_types(x_TI.dtype, torch.float32)
    bias_N = None if bias_N is None else bias_N.to(wide)
    return linear(x_TI.to(wide), weight._replace(dtype=x_TI.dtype).values().to(wide), bias_N).to(x_TI.dtype)


def coded_linear_gradient_reference(grad_TN: Tensor, weight: Codes) -> Tensor:
    """Return what `kernels.coded_linear.coded_linear_gradient` returns."""
    wide = torch.promote_types(grad_TN.dtype, torch.float32)
    return (grad_TN.to(wide) @ weight._replace(dtype=grad_TN.dtype).values().to(wide)).to(grad_TN.dtype)
