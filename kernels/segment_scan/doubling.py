"""segment_scan by doubling the reach (Hillis and Steele 1986): log2(longest segment) passes, no loop over time."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_scan_doubling(x_T: Tensor, segment_T: Tensor, decay: float, max_len: int) -> Tensor:
    """See `kernels.segment_scan.segment_scan`."""
    y_T, reach = x_T, 1
    while reach < min(max_len, x_T.shape[0]):
        ahead = y_T[reach:] * decay**reach
        same = segment_T[reach:] == segment_T[:-reach]
        y_T = torch.cat([y_T[:-reach] + torch.where(same, ahead, 0.0), y_T[-reach:]])
        reach *= 2
    return y_T
