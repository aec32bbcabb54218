"""Count what a GPU would be told to do: launches, copies between host and device, and waits of the host for the device.

A launch is one operation of PyTorch or one Triton kernel, even where PyTorch launches several. A copy that is not
`non_blocking`, or that goes to host memory that is not pinned, also waits.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = tuple(f"{ROOT / room}/" for room in ("engine", "kernels", "evaluation", "launch"))
KINDS = ("launches", "copies", "waits")


@dataclass
class Counts:
    """By what and where, of each kind: `aten.mm in engine/x.py:12`."""

    launches: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, what: str) -> None:
        getattr(self, kind)[f"{what} in {place()}"] += 1

    def totals(self) -> dict[str, int]:
        return {kind: getattr(self, kind).total() for kind in KINDS}

    def describe(self, kind: str) -> str:
        """List what was counted, the most frequent first."""
        return "\n".join(f"{n:6} {what}" for what, n in getattr(self, kind).most_common())


_open: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens inside. Calls may be nested: each counts all of it."""
    counts = Counts()
    _open.append(counts)
    try:
        yield counts
    finally:
        _open.remove(counts)


@contextmanager
def not_counting() -> Iterator[None]:
    """Count nothing that happens inside."""
    kept = _open[:]
    _open.clear()
    try:
        yield
    finally:
        _open[:] = kept


def count(kind: str, what: str) -> None:
    """Count one, in every `counting` that is open."""
    for counts in _open:
        counts.add(kind, what)


def place() -> str:
    """The line of ours that is running: the innermost on the stack; "a backward" where autograd runs on its own."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(ROOMS):
            line = linecache.getline(file, frame.f_lineno).strip()
            return f"{Path(file).relative_to(ROOT)}:{frame.f_lineno} {line}"
        frame = frame.f_back
    return "a backward or a test"
