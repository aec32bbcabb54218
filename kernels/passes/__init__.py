"""What stands between the products of a block, one pass over memory each: for many float32 rows on a CPU, no gradients.

PyTorch's RMSNorm makes seven passes and its gated activation two; with the products at the processor's rate that is a
tenth of a forward. Ask `fits` first. A row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.passes.cpu import gelu_in_place, library, rms_norm, swiglu_in_place

__all__ = ["fits", "gelu_in_place", "rms_norm", "swiglu_in_place"]


def fits(x_TD: Tensor, weight: Tensor) -> bool:
    """Float32 rows and weights on a CPU with a compiler, no gradient wanted."""
    return (
        x_TD.device.type == "cpu"
        and x_TD.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and library() is not None
    )
