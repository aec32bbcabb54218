"""The passes over a tile of logits in C++: one sweep of vector arithmetic over a tile that is still in the cache."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels import native

FOLDER = Path(__file__).parent
DTYPES = (torch.float32, torch.bfloat16)
SPARE = 16  # elements past the end of a tile that a pass may read: a vector less one, rounded up


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled passes, or None where they cannot be built."""
    lib = native.load("linear_logprob", [FOLDER / "cpu.cpp", FOLDER.parent / "vector.h"])
    if lib is not None:
        address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        tile = [address, address, number, size, size, address, ctypes.c_float]
        lib.logprob_statistics.argtypes = [*tile, address, address, size, address, number]
        lib.logprob_gradient.argtypes = [*tile, address, address, size, address, number]
        lib.logprob_exp.argtypes = [address, address, size]
        for function in (lib.logprob_statistics, lib.logprob_gradient, lib.logprob_exp):
            function.restype = None
    return lib


class Native:
    """What `eager` offers, in C++. A tile is contiguous and followed by SPARE elements of the same storage."""

    def __init__(self, lib: ctypes.CDLL):
        self.lib = lib
        self.PARTS = native.threads()

    def statistics(self, z_BT, ref_BT, bias_B, scale, kept_P6T, target_T, first_id, target_logit_2T) -> None:
        tile = _tile_arguments(z_BT, ref_BT, bias_B, scale)
        outputs = (kept_P6T.data_ptr(), target_T.data_ptr(), first_id, target_logit_2T.data_ptr(), self.PARTS)
        self.lib.logprob_statistics(*tile, *outputs)

    def gradient(self, z_BT, ref_BT, bias_B, scale, per_token_6T, target_T, first_id, target_dz_T) -> None:
        tile = _tile_arguments(z_BT, ref_BT, bias_B, scale)
        columns = (per_token_6T.data_ptr(), target_T.data_ptr(), first_id, target_dz_T.data_ptr(), self.PARTS)
        self.lib.logprob_gradient(*tile, *columns)


def _tile_arguments(z_BT: Tensor, ref_BT: Tensor | None, bias_B: Tensor | None, scale: float) -> tuple:
    assert z_BT.is_contiguous() and z_BT.dtype in DTYPES
    return (
        z_BT.data_ptr(),
        None if ref_BT is None else ref_BT.data_ptr(),
        int(z_BT.dtype == torch.bfloat16),
        *z_BT.shape,
        None if bias_B is None else bias_B.data_ptr(),
        scale,
    )
