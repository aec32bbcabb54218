"""Native calls recorded once and run again without Python: the layers of a decode step, for any number of rows.

A decode step makes some two hundred small calls, always the same ones: of what it costs on a CPU, a third can be Python
between them. While a tape records, `call` notes a function and its arguments instead of running it; `Tape.run` then
runs all of them in one call from Python. What changes from step to step must lie in the tensors that the arguments
point to, at the same place, and in the number of rows: the first field of every argument structure, set in each run.
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
    """Between the calls torch was to compute something: a tape would leave that out."""


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
    """The calls of one recording, and the memory of what lies between them.

    The tensors that a call reads and did not get from `empty` (weights, caches, inputs) must outlive the tape.
    """

    def __init__(self) -> None:
        self._functions: list[int] = []
        self._arguments: list[ctypes.Structure] = []
        self._free: list[Tensor] = []  # bytes that nobody looks at any more
        self._calls: ctypes.Array | None = None

    def add(self, function, arguments: ctypes.Structure) -> None:
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        self._functions.append(address)
        self._arguments.append(arguments)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a result. It is used anew, later in the recording, once no tensor looks at it any more."""
        size = math.prod(shape) * dtype.itemsize
        fitting = [block for block in self._free if len(block) >= size]
        block = min(fitting, key=len, default=None)
        if block is None:
            block = torch.empty(size, dtype=torch.uint8)
        else:
            self._free = [b for b in self._free if b is not block]
        lease = memoryview(block.numpy())  # lives as long as a tensor that was made of it
        weakref.finalize(lease, self._free_again, block)
        return torch.frombuffer(lease, dtype=dtype, count=math.prod(shape)).view(shape)

    def _free_again(self, block: Tensor) -> None:
        self._free.append(block)

    def run(self, rows: int) -> None:
        """Every call in order, on the first `rows` rows of what was recorded."""
        if self._calls is None:
            pairs = zip(self._functions, map(ctypes.addressof, self._arguments))
            self._calls = (_Call * len(self._functions))(*(_Call(*pair) for pair in pairs))
        _library().run_tape(self._calls, len(self._calls), rows)


class _Here(threading.local):
    tape: Tape | None = None  # that records on this thread


_here = _Here()


def can_record() -> bool:
    """Whether there is a compiler."""
    return _library() is not None


@contextmanager
def record() -> Iterator[Tape]:
    """Calls made inside are noted, not run. Raises NotRecordable at the first operation of torch that computes."""
    assert _here.tape is None, "one tape at a time"
    _here.tape = Tape()
    try:
        with _OnlyViews():
            yield _here.tape
    finally:
        _here.tape = None


def call(function, arguments: ctypes.Structure) -> None:
    """Run function(&arguments), or note it on the tape that records."""
    if _here.tape is None:
        function(ctypes.byref(arguments))
    else:
        _here.tape.add(function, arguments)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """torch.empty on the CPU for the results of a call; while a tape records, of the tape's own memory."""
    return torch.empty(shape, dtype=dtype) if _here.tape is None else _here.tape.empty(shape, dtype)


class _OnlyViews(TorchDispatchMode):
    """Memory may be taken and looked at in another shape, nothing may be computed."""

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
