"""The C++ of linear_logprob: build it, and call its passes over the float32 tiles of `blocks` instead of `eager`'s."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels.common import native

FOLDER = Path(__file__).parent
SOURCES = [
    *(FOLDER / name for name in ("float32.cpp", "bfloat16.cpp", "passes.h", "bf16_product.h")),
    *(FOLDER.parent / "common" / name for name in ("amx.h", "vector.h")),
]
SPARE = 16  # elements after the end of a tile that a pass may read: one vector less one element, rounded up

ADDRESS, SIZE, NUMBER, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
TILE = (ADDRESS, SIZE, SIZE, REAL)
BLOCK = (ADDRESS, SIZE, SIZE, SIZE, SIZE, ADDRESS, SIZE, REAL, ADDRESS, NUMBER, NUMBER)
ARGUMENTS = {
    "logprob_statistics": (*TILE, ADDRESS, ADDRESS, SIZE, ADDRESS, NUMBER),
    "logprob_gradient": (*TILE, ADDRESS, ADDRESS, SIZE, ADDRESS, NUMBER),
    "logprob_exp": (ADDRESS, ADDRESS, SIZE),
    "logprob_bf16_statistics": (*BLOCK, ADDRESS, ADDRESS, SIZE, ADDRESS),
    "logprob_bf16_gradient": (*BLOCK, ADDRESS, ADDRESS, SIZE, *[ADDRESS] * 7, NUMBER),
    "logprob_bf16_logits": (*BLOCK, SIZE, ADDRESS, SIZE),
    "logprob_bf16_unpack": (ADDRESS, SIZE, SIZE, SIZE, ADDRESS, SIZE, NUMBER),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be built."""
    lib = native.load("linear_logprob", SOURCES)
    for name, arguments in ARGUMENTS.items() if lib is not None else ():
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, None
    return lib


def address(x: Tensor | None) -> int | None:
    """Return the address of x's first element, None for None. The caller keeps x alive."""
    return None if x is None else x.data_ptr()


class Passes:
    """`eager`'s functions in C++. A tile is contiguous, with SPARE more elements of its storage after it."""

    def __init__(self, lib: ctypes.CDLL):
        self.lib = lib
        self.PARTS = native.threads()

    def statistics(self, z_BT, scale, totals_P3T, target_T, first_id, target_logit_T) -> None:
        columns = (address(totals_P3T), address(target_T), first_id, address(target_logit_T), self.PARTS)
        self.lib.logprob_statistics(*_tile(z_BT, scale), *columns)

    def gradient(self, z_BT, scale, per_token_4T, target_T, first_id, target_dz_T) -> None:
        columns = (address(per_token_4T), address(target_T), first_id, address(target_dz_T), self.PARTS)
        self.lib.logprob_gradient(*_tile(z_BT, scale), *columns)


def _tile(z_BT: Tensor, scale: float) -> tuple:
    assert z_BT.is_contiguous() and z_BT.dtype == torch.float32
    return address(z_BT), *z_BT.shape, scale
