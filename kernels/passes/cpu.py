"""Norm and activations on CPU in C++ (cpu.cpp)."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels.common import native

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "cpu.cpp", *(FOLDER.parent / "common" / name for name in ("activations.h", "parts.h", "vector.h")))
POINTER, LONG, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


@cache
def library() -> ctypes.CDLL | None:
    """Return the built kernels, or None without a compiler."""
    lib = native.load("passes", SOURCES)
    if lib is not None:
        lib.rms_norm.argtypes = [POINTER, POINTER, ctypes.c_float, LONG, LONG, POINTER, INT]
        lib.gelu.argtypes = [POINTER, LONG, INT]
        lib.swiglu.argtypes = [POINTER, POINTER, LONG, INT]
        for function in (lib.rms_norm, lib.gelu, lib.swiglu):
            function.restype = None
    return lib


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `kernels.passes.reference.rms_norm`."""
    x_TD, out_TD = x_TD.contiguous(), torch.empty(x_TD.shape)
    _check(x_TD, weight_D)
    pointers = (x_TD.data_ptr(), weight_D.data_ptr())
    library().rms_norm(*pointers, eps, *x_TD.shape, out_TD.data_ptr(), native.threads())
    return out_TD


def gelu_in_place(x: Tensor) -> Tensor:
    """See `kernels.passes.reference.gelu`; x is overwritten and returned."""
    _check(x)
    library().gelu(x.data_ptr(), x.numel(), native.threads())
    return x


def swiglu_in_place(gate: Tensor, up: Tensor) -> Tensor:
    """See `kernels.passes.reference.swiglu`; gate is overwritten and returned."""
    _check(gate, up)
    assert gate.shape == up.shape, (gate.shape, up.shape)
    library().swiglu(gate.data_ptr(), up.data_ptr(), gate.numel(), native.threads())
    return gate


def _check(*tensors: Tensor) -> None:
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in tensors), [x.dtype for x in tensors]
