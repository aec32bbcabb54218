"""Discounted reverse sums within segments: the recurrence of GAE and of discounted returns."""

from kernels.segment_scan.doubling import segment_scan
from kernels.segment_scan.reference import segment_scan_reference

__all__ = ["segment_scan", "segment_scan_reference"]
