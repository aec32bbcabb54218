"""Products with a weight of integer codes on CUDA: a linear layer's output, and the gradient of its input."""

from __future__ import annotations

from torch import Tensor

from kernels.coded_linear.reference import coded_linear_gradient_reference, coded_linear_reference
from kernels.common.codes import Codes

__all__ = [
    "coded_linear",
    "coded_linear_gradient",
    "coded_linear_gradient_reference",
    "coded_linear_reference",
    "fits",
]


def fits(x_TI: Tensor) -> bool:
    """Whether these kernels take such rows: on CUDA. On a CPU, kernels/skinny_linear reads codes in decoding."""
    return x_TI.device.type == "cuda"


def coded_linear(x_TI: Tensor, weight: Codes, bias_N: Tensor | None = None) -> Tensor:
    """Return x @ values.T + bias, [T, N] in the dtype of x: float32, bfloat16 or float16.

    The values are those of `Codes.values` in the dtype of x, bias_N has it too. They exist only in registers, products
    are summed in float32, and the result is rounded once. No gradients. Never waits for the device, and the number of
    programs depends on shapes alone: a CUDA graph can hold it.
    """
    from kernels.coded_linear.fused import coded_linear_triton  # imported here: triton is not installed everywhere

    return coded_linear_triton(x_TI, weight, bias_N)


def coded_linear_gradient(grad_TN: Tensor, weight: Codes) -> Tensor:
    """Return grad @ values, [T, I] in the dtype of grad: the gradient of the input of `coded_linear`. As exact."""
    from kernels.coded_linear.fused import coded_linear_gradient_triton

    return coded_linear_gradient_triton(grad_TN, weight)
