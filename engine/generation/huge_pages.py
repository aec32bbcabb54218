"""Large memory pages for what every decode step reads, weights and cache, on Linux with a CPU; elsewhere nothing.

A step reads all of it. In pages of 4 KB the walks to find them, dear under virtualisation, take a fifth of its time.
The kernel is asked for 2 MB pages; where it declines, all works as before.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import cache

from torch import Tensor

HUGE_BYTES = 2 << 20
_HUGEPAGE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE, and MADV_COLLAPSE of Linux 6.1
_NEIGHBOUR_BYTES = 64 << 10  # allocations this close lie in one mapping


def collapse(tensors: Iterable[Tensor]) -> None:
    """For memory already filled: neighbouring tensors are moved together into large pages, each range once."""
    for start, stop in _ranges(tensors):
        _once(start, stop)


def ask(tensor: Tensor) -> None:
    """For memory not yet filled: it will come in large pages."""
    for start, stop in _ranges([tensor]):
        _advise(start, stop, _HUGEPAGE)


@cache
def _once(start: int, stop: int) -> None:
    if _advise(start, stop, _HUGEPAGE):
        _advise(start, stop, _COLLAPSE)


def _ranges(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """The whole 2 MB pages within the memory of the tensors, neighbours taken together."""
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
    """Whether the kernel took the advice. It is free not to: there may be holes, or no such pages."""
    madvise = ctypes.CDLL(None).madvise
    return madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), advice) == 0
