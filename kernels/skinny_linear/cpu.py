"""skinny_linear on CPU: call the C++ (cpu.cpp) with pointers and sizes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from kernels.common import native, tape
from kernels.common.codes import Codes

FOLDER = Path(__file__).parent
SOURCES = (
    *(FOLDER / name for name in ("cpu.cpp", "matrix.h", "product.h", "product_amx.h", "product_avx2.h")),
    *(FOLDER.parent / "common" / name for name in ("activations.h", "amx.h", "vector.h")),
)
ACTIVATIONS = {None: 0, "gelu": 1, "swiglu": 2, "geglu": 3}
GATED = ("swiglu", "geglu")  # of two weights
NO_NORM, RMS, LAYER, CENTRED_RMS = 0, 1, 2, 3
POINTER, LONG = ctypes.c_void_p, ctypes.c_int64
MAX_WEIGHTS = 3


class Call(ctypes.Structure):
    """`struct Call` of cpu.cpp, field by field."""

    _fields_ = (
        ("rows", LONG),
        *((name, POINTER) for name in ("x", "norm_weight", "norm_bias", "residual", "out")),
        *((name, POINTER * MAX_WEIGHTS) for name in ("weights", "codes", "scales", "biases")),
        *((name, LONG * MAX_WEIGHTS) for name in ("bits", "sizes")),
        *((name, LONG) for name in ("count", "K", "out_step", "threads", "norm", "activation", "matrix_unit")),
        ("eps", ctypes.c_float),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Return the built kernel, or None where there is no compiler."""
    lib = native.load("skinny_linear", SOURCES)
    if lib is not None:
        lib.has_matrix_unit.restype, lib.has_matrix_unit.argtypes = ctypes.c_int, []
        lib.skinny_linear.restype, lib.skinny_linear.argtypes = None, [ctypes.POINTER(Call)]
    return lib


@cache
def has_matrix_unit() -> bool:
    """Whether products run on a matrix unit (Intel AMX, if the system allows it) instead of vectors."""
    return library() is not None and bool(library().has_matrix_unit())


def skinny_linear_cpu(
    x_TD: Tensor,
    weights: Sequence[Tensor | Codes],
    biases: Sequence[Tensor | None],
    norm=None,
    activation: str | None = None,
    residual_TN: Tensor | None = None,
    out_TN: Tensor | None = None,
) -> Tensor:
    """See `kernels.skinny_linear.skinny_linear`."""
    x_TD = x_TD.contiguous()
    sizes = [weight.shape[0] for weight in weights]
    width = sizes[0] if activation in GATED else sum(sizes)
    out_TN = tape.empty(x_TD.shape[0], width) if out_TN is None else out_TN
    assert out_TN.shape == (x_TD.shape[0], width) and out_TN.is_contiguous(), (out_TN.shape, width)
    if residual_TN is not None:
        residual_TN = residual_TN.contiguous()
        assert residual_TN.shape == out_TN.shape, (residual_TN.shape, out_TN.shape)
    coded = [w if isinstance(w, Codes) else None for w in weights]
    plain = [w if c is None else None for w, c in zip(weights, coded)]
    parts = [part for w, c in zip(plain, coded) for part in ((w,) if c is None else c[:2])]
    assert all(part.is_contiguous() for part in parts)
    assert all(w.shape[1] == x_TD.shape[1] for w in weights), [w.shape for w in weights]
    norm_weight_D, norm_bias_D, eps, centred = norm or (None, None, 0.0, False)
    assert not (centred and norm_bias_D is not None)
    arguments = Call(
        x_TD.shape[0],
        *map(_pointer, (x_TD, norm_weight_D, norm_bias_D, residual_TN, out_TN)),
        (POINTER * MAX_WEIGHTS)(*map(_pointer, plain)),
        *((POINTER * MAX_WEIGHTS)(*(_pointer(c and c[i]) for c in coded)) for i in (0, 1)),
        (POINTER * MAX_WEIGHTS)(*map(_pointer, biases)),
        (LONG * MAX_WEIGHTS)(*(c.bits if c else 0 for c in coded)),
        (LONG * MAX_WEIGHTS)(*sizes),
        *(len(weights), x_TD.shape[1], width, native.threads()),
        NO_NORM if norm is None else LAYER if norm_bias_D is not None else CENTRED_RMS if centred else RMS,
        *(ACTIVATIONS[activation], has_matrix_unit()),
        eps,
    )
    tape.call(library().skinny_linear, arguments)
    return out_TN


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
