"""The operations between a block's products, one memory pass each: for float32 rows on a CPU, without gradients.

PyTorch's RMSNorm takes seven passes and its gated activation two, a tenth of a forward when products run at full rate.
Check `fits` first. A row's bits do not depend on other rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.passes.cpu import (
    add_rms_norm,
    geglu_in_place,
    gelu_in_place,
    library,
    rms_norm,
    rms_norm_in_place,
    swiglu_in_place,
)

__all__ = [
    "add_rms_norm",
    "fits",
    "geglu_in_place",
    "gelu_in_place",
    "rms_norm",
    "rms_norm_in_place",
    "swiglu_in_place",
]


def fits(x_TD: Tensor, weight: Tensor) -> bool:
    """Return whether rows and weights are float32 on a CPU with a compiler, without gradients."""
    return (
        x_TD.device.type == "cpu"
        and x_TD.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and library() is not None
    )
