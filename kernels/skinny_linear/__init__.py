"""Linear layers on a few rows, or on any number with AMX: norm before, activation and residual after, in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.skinny_linear import cpu
from kernels.skinny_linear.reference import skinny_linear_reference

__all__ = ["Norm", "fits", "max_rows", "skinny_linear", "skinny_linear_reference"]

MAX_ROWS_ON_VECTORS = 96


class Norm(NamedTuple):
    """RMSNorm (Zhang and Sennrich 2019), or with a bias LayerNorm (Ba et al. 2016), over the last dimension."""

    weight_D: Tensor
    bias_D: Tensor | None
    eps: float


def max_rows() -> float:
    """Up to how many rows it is faster than a general matrix product: any number on a matrix unit (Intel AMX).

    No smaller limit there: the two products round differently, so a row that changes from one to the other because of
    the rows beside it changes its bits.
    """
    return math.inf if cpu.has_matrix_unit() else MAX_ROWS_ON_VECTORS


def fits(x_TD: Tensor, weight_ND: Tensor) -> bool:
    """Whether `skinny_linear` is the fast way: at most `max_rows` float32 rows on a CPU, whole weights, no gradient."""
    return (
        x_TD.shape[0] <= max_rows()
        and x_TD.dtype == weight_ND.dtype == torch.float32
        and x_TD.device.type == "cpu"
        and weight_ND.ndim == 2  # ZeRO-3 leaves flat stumps of weights that are elsewhere
        and not torch.is_grad_enabled()
        and cpu.library() is not None
    )


def skinny_linear(
    x_TD: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm: Norm | None = None,
    activation: str | None = None,
    residual_TN: Tensor | None = None,
) -> Tensor:
    """activation(norm(x) W^T + b) + residual, the weights' outputs side by side: [T, sum of N].

    x_TD float32 [T, D]; weights [N, D] each; biases [N] or None. activation is None, "gelu" (its tanh
    form) or "swiglu" (Shazeer 2020), which makes [T, N] of two weights: silu of the first times the second. residual
    has the shape of the result. The weights are read where they are, once, and not copied. A row's result does not
    depend on the other rows, to the bit. No gradients; ask `fits` first.
    """
    return cpu.skinny_linear_cpu(x_TD, weights, biases, norm, activation, residual_TN)
