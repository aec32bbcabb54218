"""Record native calls once and run them again without Python: the layers of a decode step, for any number of rows.

A decode step makes about two hundred small calls, always the same ones. On a CPU, Python between them can take a third
of the time. While a tape records, `call` stores a function and its arguments instead of running it. `Tape.run` then
runs all of them in one call from Python. Only two things may change from step to step: the contents of the tensors that
the arguments point to, and the number of rows, the first field of every argument structure, which each run sets.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, ops
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.common import native

SOURCES = (Path(__file__).parent / "tape.cpp",)


class NotRecordable(Exception):
    """torch computed something between the calls. A tape would skip it."""


class _Call(ctypes.Structure):
    """`struct Call` of tape.cpp."""

    _fields_ = (("function", ctypes.c_void_p), ("arguments", ctypes.c_void_p))


@cache
def _library() -> ctypes.CDLL | None:
    lib = native.load("tape", SOURCES)
    if lib is not None:
        lib.run_tape.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        lib.run_tape.restype = None
    return lib


class Tape:
    """The calls of one recording, and the memory of their intermediate results.

    Tensors that a call reads and that did not come from `empty` (weights, caches, inputs) must outlive the tape.
    """

    def __init__(self) -> None:
        self._functions: list[int] = []
        self._arguments: list[ctypes.Structure] = []
        self._free: list[Tensor] = []  # blocks of bytes that no tensor uses any more
        self._calls: ctypes.Array | None = None

    def add(self, function, arguments: ctypes.Structure) -> None:
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        self._functions.append(address)
        self._arguments.append(arguments)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory for a result. Later results of the recording reuse it once no tensor views it any more."""
        size = math.prod(shape) * dtype.itemsize
        fitting = [block for block in self._free if len(block) >= size]
        block = min(fitting, key=len, default=None)
        if block is None:
            block = torch.empty(size, dtype=torch.uint8)
        else:
            self._free = [b for b in self._free if b is not block]
        lease = memoryview(block.numpy())  # lives as long as a tensor made from it
        weakref.finalize(lease, self._release, block)
        return torch.frombuffer(lease, dtype=dtype, count=math.prod(shape)).view(shape)

    def _release(self, block: Tensor) -> None:
        self._free.append(block)

    def run(self, rows: int) -> None:
        """Run every call in order on the first `rows` rows."""
        if self._calls is None:
            pairs = zip(self._functions, map(ctypes.addressof, self._arguments))
            self._calls = (_Call * len(self._functions))(*(_Call(*pair) for pair in pairs))
        _library().run_tape(self._calls, len(self._calls), rows)


class _Recording(threading.local):
    tape: Tape | None = None  # the tape that records on this thread


_recording = _Recording()


def can_record() -> bool:
    """Whether the tape's C++ could be built."""
    return _library() is not None


@contextmanager
def record() -> Iterator[Tape]:
    """Store the calls made inside instead of running them. Raises NotRecordable when torch computes something."""
    assert _recording.tape is None, "one tape at a time"
    _recording.tape = Tape()
    try:
        with _OnlyViews():
            yield _recording.tape
    finally:
        _recording.tape = None


def call(function, arguments: ctypes.Structure) -> None:
    """Run function(&arguments), or store it while a tape records on this thread."""
    if _recording.tape is None:
        function(ctypes.byref(arguments))
    else:
        _recording.tape.add(function, arguments)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return torch.empty on the CPU for the result of a call; while a tape records, from the tape's memory."""
    return torch.empty(shape, dtype=dtype) if _recording.tape is None else _recording.tape.empty(shape, dtype)


class _OnlyViews(TorchDispatchMode):
    """Allow allocations and views, and raise NotRecordable for everything else."""

    ALLOWED = frozenset(
        {
            *(ops.aten.empty, ops.aten.view, ops.aten.split, ops.aten.split_with_sizes, ops.aten.unbind),
            *(ops.aten.slice, ops.aten.select, ops.aten.detach, ops.aten.alias, ops.aten.expand),
        }
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket not in self.ALLOWED:
            raise NotRecordable(str(func))
        return func(*args, **(kwargs or {}))
