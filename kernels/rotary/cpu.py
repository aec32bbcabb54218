"""Rotation in place on CPU in C++ (cpu.cpp)."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels.common import native, tape

SOURCES = (Path(__file__).parent / "cpu.cpp",)


class Call(ctypes.Structure):
    """`struct Call` of cpu.cpp, field by field."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "cos", "sin")),
        *((name, ctypes.c_int64) for name in ("step", "heads", "half")),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Return the built kernel, or None without a compiler."""
    lib = native.load("rotary", SOURCES)
    if lib is not None:
        lib.rotate.restype, lib.rotate.argtypes = None, [ctypes.POINTER(Call)]
    return lib


def rotate_cpu(x_THK: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See `kernels.rotary.rotate_in_place`."""
    rows, heads, size = x_THK.shape
    assert x_THK.dtype == cos.dtype == sin.dtype == torch.float32
    assert x_THK.stride()[1:] == (size, 1), x_THK.stride()
    assert cos.is_contiguous(), cos.stride()
    assert sin.is_contiguous(), sin.stride()
    pointers = (x.data_ptr() for x in (x_THK, cos, sin))
    tape.call(library().rotate, Call(rows, *pointers, x_THK.stride(0), heads, size // 2))
