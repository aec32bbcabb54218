"""Linear layers on a few rows (any number with AMX), fused with norm before and activation and residual after."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.common.codes import Codes
from kernels.common.norm import Norm
from kernels.skinny_linear import cpu
from kernels.skinny_linear.reference import skinny_linear_reference

__all__ = ["Codes", "Norm", "fits", "max_rows", "skinny_linear", "skinny_linear_reference"]

MAX_ROWS_ON_VECTORS = 96


def max_rows() -> float:
    """Return up to how many rows `skinny_linear` should be used: infinite on a matrix unit (Intel AMX).

    A smaller limit there would change bits: the two products round differently, so a row's result would depend on how
    many other rows there are.
    """
    return math.inf if cpu.has_matrix_unit() else MAX_ROWS_ON_VECTORS


def fits(x_TD: Tensor, weight_ND: Tensor | Codes) -> bool:
    """Whether to use `skinny_linear`: at most `max_rows` float32 rows on a CPU, unsharded weights, no gradient."""
    stored = weight_ND.codes if isinstance(weight_ND, Codes) else weight_ND
    return (
        x_TD.shape[0] <= max_rows()
        and x_TD.dtype == torch.float32
        and (stored is not weight_ND or stored.dtype == torch.float32)
        and x_TD.device.type == "cpu"
        and stored.ndim == 2  # ZeRO-3 replaces sharded weights by flat placeholders
        and not torch.is_grad_enabled()
        and cpu.library() is not None
    )


def skinny_linear(
    x_TD: Tensor,
    weights: Sequence[Tensor | Codes],
    biases: Sequence[Tensor | None],
    norm: Norm | None = None,
    activation: str | None = None,
    residual_TN: Tensor | None = None,
    out_TN: Tensor | None = None,
) -> Tensor:
    """Return activation(norm(x) W^T + b) + residual, with the weights' outputs side by side: float32 [T, sum of N].

    x_TD float32 [T, D]; weights [N, D] each, float32 or Codes; biases [N] or None. activation is None, "gelu" (tanh
    form), "swiglu" or "geglu" (Shazeer 2020), which return [T, N] from two weights: silu or gelu of the first times the
    second. residual has the shape of the result, which is written to out_TN if given. Reads each weight once, without a
    copy; Codes give the bits of their float32 values. A row's bits do not depend on other rows. No gradients. Call
    `fits` first.
    """
    return cpu.skinny_linear_cpu(x_TD, weights, biases, norm, activation, residual_TN, out_TN)
