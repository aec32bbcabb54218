"""Ask Linux for 2 MB memory pages for weights and cache on a CPU; elsewhere do nothing.

Every decode step reads all of that memory. With 4 KB pages the page-table walks, expensive in a virtual machine, take a
fifth of the time. If the kernel declines, everything works as before.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import cache

from torch import Tensor

HUGE_BYTES = 2 << 20
_HUGEPAGE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE, and MADV_COLLAPSE of Linux 6.1
_NEIGHBOUR_BYTES = 64 << 10  # allocations this close are in one mapping


def collapse(tensors: Iterable[Tensor]) -> None:
    """Move filled memory into large pages, neighbouring tensors together, each range once."""
    for start, stop in _ranges(tensors):
        _once(start, stop)


def ask(tensor: Tensor) -> None:
    """Request large pages for memory that is not filled yet."""
    for start, stop in _ranges([tensor]):
        _advise(start, stop, _HUGEPAGE)


@cache
def _once(start: int, stop: int) -> None:
    if _advise(start, stop, _HUGEPAGE):
        _advise(start, stop, _COLLAPSE)


def _ranges(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Return the ranges of whole 2 MB pages in the tensors' memory, neighbours joined."""
    if sys.platform != "linux":
        return []
    storages = (t.untyped_storage() for t in tensors if t.device.type == "cpu")
    spans = sorted({(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages})
    joined: list[list[int]] = []
    for start, stop in spans:
        if joined and start - joined[-1][1] <= _NEIGHBOUR_BYTES:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    whole = [(-(-start // HUGE_BYTES) * HUGE_BYTES, stop // HUGE_BYTES * HUGE_BYTES) for start, stop in joined]
    return [(start, stop) for start, stop in whole if start < stop]


def _advise(start: int, stop: int, advice: int) -> bool:
    """Call madvise. Returns False if the kernel declines."""
    madvise = ctypes.CDLL(None).madvise
    return madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), advice) == 0
