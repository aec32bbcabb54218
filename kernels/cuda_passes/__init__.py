"""The operations between a block's products on CUDA, one kernel each: for rows without gradients.

A decode step is a few rows, and each kernel takes a few microseconds whatever it does: fewer kernels, less time.
Arithmetic is in float32 and rounded to the dtype of the rows where a result is stored. A row's bits do not depend on
other rows. Check `fits` first. Shapes: T rows, D model, N inner size of the MLP.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.common.norm import Norm
from kernels.cuda_passes.reference import add_norm_reference, gated_reference, gelu_reference

__all__ = ["Norm", "add_norm", "add_norm_reference", "fits", "gated", "gated_reference", "gelu", "gelu_reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(x_TD: Tensor) -> bool:
    """Whether these kernels take such rows: float32, bfloat16 or float16 on CUDA, without gradients."""
    return x_TD.device.type == "cuda" and x_TD.dtype in DTYPES and not torch.is_grad_enabled()


def add_norm(
    h_TD: Tensor,
    x_TD: Tensor | None,
    norm: Norm | None,
    x_norm: Norm | None = None,
    next_bias_D: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return (r, y), both [T, D] in the dtype of h: r = h + x, or h + x_norm(x), and y = norm(r).

    Without x, r is h itself; without norm, y is None. next_bias is added to the r that is returned, not to y's: the
    bias of the next product that is added to r in place. y is the norm of r as rounded, as if r had been stored.
    """
    from kernels.cuda_passes.fused import add_norm_triton  # imported here: triton is not installed everywhere

    return add_norm_triton(h_TD, x_TD, norm, x_norm, next_bias_D)


def gated(activation: str, gate_TN: Tensor, up_TN: Tensor) -> Tensor:
    """Return silu(gate) * up ("swiglu") or gelu(gate) * up ("geglu", tanh form; both Shazeer 2020), a new [T, N].

    gate and up may be parts of one product: their rows must be dense.
    """
    from kernels.cuda_passes.fused import gated_triton

    return gated_triton(activation, gate_TN, up_TN)


def gelu(x_TN: Tensor) -> Tensor:
    """Return the tanh form of GELU (Hendrycks and Gimpel 2016), a new [T, N]."""
    from kernels.cuda_passes.fused import gelu_triton

    return gelu_triton(x_TN)
