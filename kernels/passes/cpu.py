"""Norms and activations on CPU in C++ (cpu.cpp)."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels.common import native, tape

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "cpu.cpp", *(FOLDER.parent / "common" / name for name in ("activations.h", "parts.h", "vector.h")))
POINTER, LONG, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class Call(ctypes.Structure):
    """`struct Call` of cpu.cpp, field by field."""

    _fields_ = (
        ("rows", LONG),
        *((name, POINTER) for name in ("x", "weight", "residual", "out")),
        *((name, LONG) for name in ("x_row", "residual_row", "out_row", "heads", "D", "threads")),
        *((name, ctypes.c_float) for name in ("eps", "offset")),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Return the built kernels, or None without a compiler."""
    lib = native.load("passes", SOURCES)
    if lib is not None:
        lib.rms_norm.argtypes = [ctypes.POINTER(Call)]
        lib.gelu.argtypes = [POINTER, LONG, INT]
        lib.swiglu.argtypes = lib.geglu.argtypes = [POINTER, POINTER, LONG, INT]
        for function in (lib.rms_norm, lib.gelu, lib.swiglu, lib.geglu):
            function.restype = None
    return lib


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, centred: bool = False) -> Tensor:
    """See `kernels.passes.reference.rms_norm`."""
    x_TD = x_TD.contiguous()
    out_TD = tape.empty(*x_TD.shape)
    _rms_norm(x_TD[:, None], weight_D, eps, centred, None, out_TD[:, None])
    return out_TD


def rms_norm_in_place(x_THK: Tensor, weight_K: Tensor, eps: float, centred: bool = False) -> None:
    """Overwrite x by `rms_norm` over its last dimension; its last two dimensions are dense."""
    _rms_norm(x_THK, weight_K, eps, centred, None, x_THK)


def add_rms_norm(residual_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float, centred: bool = False) -> Tensor:
    """Return residual + rms_norm(x), [T, D]."""
    residual_TD, x_TD = residual_TD.contiguous(), x_TD.contiguous()
    out_TD = tape.empty(*x_TD.shape)
    _rms_norm(x_TD[:, None], weight_D, eps, centred, residual_TD[:, None], out_TD[:, None])
    return out_TD


def _rms_norm(
    x_THK: Tensor, weight_K: Tensor, eps: float, centred: bool, residual_THK: Tensor | None, out_THK: Tensor
) -> None:
    tensors = (x_THK, weight_K, residual_THK, out_THK)
    rows, heads, size = x_THK.shape
    for x in (x_THK, residual_THK, out_THK):
        assert x is None or (x.dtype == torch.float32 and x.stride()[1:] == (size, 1)), (x.dtype, x.stride())
    assert weight_K.dtype == torch.float32 and weight_K.shape == (size,), (weight_K.dtype, weight_K.shape)
    pointers = (None if x is None else x.data_ptr() for x in tensors)
    steps = (0 if x is None else x.stride(0) for x in (x_THK, residual_THK, out_THK))
    tape.call(library().rms_norm, Call(rows, *pointers, *steps, heads, size, native.threads(), eps, float(centred)))


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


def geglu_in_place(gate: Tensor, up: Tensor) -> Tensor:
    """See `kernels.passes.reference.geglu`; gate is overwritten and returned."""
    _check(gate, up)
    assert gate.shape == up.shape, (gate.shape, up.shape)
    library().geglu(gate.data_ptr(), up.data_ptr(), gate.numel(), native.threads())
    return gate


def _check(*tensors: Tensor) -> None:
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in tensors), [x.dtype for x in tensors]
