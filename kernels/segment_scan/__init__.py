"""Discounted reverse sums within segments, the recurrence of GAE and of returns."""

from __future__ import annotations

from torch import Tensor

from kernels.segment_scan.doubling import segment_scan_doubling
from kernels.segment_scan.reference import segment_scan_reference

__all__ = ["segment_scan", "segment_scan_reference"]


def segment_scan(x_T: Tensor, segment_T: Tensor, decay: float, max_len: int) -> Tensor:
    """Return y[t] = x[t] + decay * y[t + 1] while t + 1 is in the same segment.

    x_T float [T], a constant: gradients are not followed; segment_T int64 [T], equal within a segment, segments
    contiguous, neighbours different; max_len at least the longest segment, known on the host. Returns y [T] in the
    dtype of x.
    """
    if x_T.device.type == "cuda":
        from kernels.segment_scan.fused import segment_scan_triton  # imported here: triton is not installed everywhere

        return segment_scan_triton(x_T, segment_T, decay, max_len)
    return segment_scan_doubling(x_T, segment_T, decay, max_len)
