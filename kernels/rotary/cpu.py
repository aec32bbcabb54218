"""Rotation in place on CPU in C++ (cpu.cpp): its arguments as pointers and sizes."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels import native

SOURCES = (Path(__file__).parent / "cpu.cpp",)


@cache
def library() -> ctypes.CDLL | None:
    """The built kernel, or None where there is no compiler."""
    lib = native.load("rotary", SOURCES)
    if lib is not None:
        lib.rotate.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 4]
        lib.rotate.restype = None
    return lib


def rotate_cpu(x_THK: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See `kernels.rotary.rotate_in_place`."""
    rows, heads, size = x_THK.shape
    assert x_THK.dtype == cos.dtype == sin.dtype == torch.float32
    assert x_THK.stride()[1:] == (size, 1), x_THK.stride()
    assert cos.is_contiguous(), cos.stride()
    assert sin.is_contiguous(), sin.stride()
    library().rotate(x_THK.data_ptr(), cos.data_ptr(), sin.data_ptr(), rows, x_THK.stride(0), heads, size // 2)
