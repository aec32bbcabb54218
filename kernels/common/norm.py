"""The parameters of a norm over the last dimension."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Norm(NamedTuple):
    """RMSNorm (Zhang and Sennrich 2019), or with a bias LayerNorm (Ba et al. 2016), over the last dimension.

    A centred RMSNorm stores its weight as the difference from 1.
    """

    weight_D: Tensor
    bias_D: Tensor | None
    eps: float
    centred: bool = False
