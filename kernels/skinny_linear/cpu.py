"""skinny_linear on CPU in C++ (cpu.cpp): its arguments as pointers and sizes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels import native

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "cpu.cpp", FOLDER / "product.h", FOLDER.parent / "vector.h")
ACTIVATIONS = {None: 0, "gelu": 1, "swiglu": 2}
NO_NORM, RMS, LAYER = 0, 1, 2
POINTER, LONG = ctypes.c_void_p, ctypes.c_int64


@cache
def library() -> ctypes.CDLL | None:
    """The built kernel, or None where there is no compiler."""
    lib = native.load("skinny_linear", SOURCES)
    if lib is not None:
        lib.skinny_linear.restype = None
        lib.skinny_linear.argtypes = [
            *(POINTER, LONG, LONG, ctypes.c_int, POINTER, POINTER, ctypes.c_float),
            *(LONG, POINTER, POINTER, POINTER, ctypes.c_int, POINTER, POINTER, LONG, ctypes.c_int),
        ]
    return lib


def skinny_linear_cpu(
    x_TD: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm=None,
    activation: str | None = None,
    residual_TN: Tensor | None = None,
) -> Tensor:
    """See `kernels.skinny_linear.skinny_linear`."""
    x_TD = x_TD.contiguous()
    sizes = [weight.shape[0] for weight in weights]
    width = sizes[0] if activation == "swiglu" else sum(sizes)
    out_TN = torch.empty(x_TD.shape[0], width)
    if residual_TN is not None:
        residual_TN = residual_TN.contiguous()
        assert residual_TN.shape == out_TN.shape, (residual_TN.shape, out_TN.shape)
    assert all(w.shape[1] == x_TD.shape[1] and w.is_contiguous() for w in weights), [w.shape for w in weights]
    kind = NO_NORM if norm is None else RMS if norm.bias_D is None else LAYER
    pointers, longs = POINTER * len(weights), LONG * len(weights)
    library().skinny_linear(
        x_TD.data_ptr(), *x_TD.shape,
        kind, norm and norm.weight_D.data_ptr(), _pointer(norm and norm.bias_D), norm.eps if norm else 0.0,
        len(weights), pointers(*[w.data_ptr() for w in weights]), pointers(*map(_pointer, biases)), longs(*sizes),
        ACTIVATIONS[activation], _pointer(residual_TN), out_TN.data_ptr(), width, native.threads(),
    )  # fmt: skip
    return out_TN


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
