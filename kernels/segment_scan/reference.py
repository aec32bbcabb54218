"""Specification of segment_scan: one loop from the last column to the first."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_scan_reference(x_T: Tensor, segment_T: Tensor, decay: float) -> Tensor:
    """Return y[t] = x[t] + decay * y[t + 1] while t + 1 is in the same segment."""
    y_T = torch.empty_like(x_T)
    for t in reversed(range(x_T.shape[0])):
        y_T[t] = x_T[t]
        if t + 1 < x_T.shape[0] and segment_T[t] == segment_T[t + 1]:
            y_T[t] += decay * y_T[t + 1]
    return y_T
