"""attention_decode and write_pages on CPU: call the C++ (cpu.cpp) with pointers and strides."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels.common import native, tape

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "cpu.cpp", FOLDER / "products.h", FOLDER.parent / "common" / "vector.h")
DTYPES = (torch.float32, torch.bfloat16)
NO_WINDOW = 1 << 40  # positions: longer than any sequence

_POINTERS = ("q", "k", "v", "out", "table", "length", "slopes", "cu_groups", "shared", "partial")
_NUMBERS = (
    *("heads", "kv_heads", "head_size", "page_size", "table_width", "chunks", "threads", "element_bytes"),
    *("window", "q_row", "q_head", "k_page", "k_head", "k_slot", "v_page", "v_head", "v_slot"),
)
_STEPS = (
    *("k_row", "k_head", "v_row", "v_head"),
    *("k_page", "k_page_head", "k_slot", "v_page", "v_page_head", "v_slot"),
)


class Call(ctypes.Structure):
    """`struct Call` of cpu.cpp, field by field."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("scale", ctypes.c_float),
    )


class Write(ctypes.Structure):
    """`struct Write` of cpu.cpp, field by field."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("k", "v", "k_pages", "v_pages", "page", "slot")),
        *((name, ctypes.c_int64) for name in ("heads", "bytes", "threads", *_STEPS)),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Return the built kernel, or None where there is no compiler."""
    lib = native.load("attention_decode", SOURCES)
    if lib is not None:
        lib.decode.restype, lib.decode.argtypes = None, [ctypes.POINTER(Call)]
        lib.write_pages.restype, lib.write_pages.argtypes = None, [ctypes.POINTER(Write)]
        lib.chunk_positions.argtypes, lib.chunk_positions.restype = [ctypes.c_int64], ctypes.c_int64
    return lib


def attention_decode_cpu(
    q_SHK: Tensor,
    k_PGNK: Tensor,
    v_PGNK: Tensor,
    table_SB: Tensor,
    length_S: Tensor,
    slopes_H: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    cu_groups: Tensor | None = None,
    shared_R: Tensor | None = None,
) -> Tensor:
    """See `kernels.attention_decode.attention_decode`.

    Fastest with K a multiple of 32; with any other K, each page is copied before it is used.
    """
    rows, heads, head_size = q_SHK.shape
    kv_heads, page_size = k_PGNK.shape[1:3]
    out_SHK = tape.empty(rows, heads, head_size, dtype=q_SHK.dtype)
    q_SHK, k_PGNK, v_PGNK = (_last_dense(x) for x in (q_SHK, k_PGNK, v_PGNK))
    table_SB, length_S = table_SB.contiguous(), length_S.contiguous()
    assert table_SB.dtype == length_S.dtype == torch.int32
    assert k_PGNK.dtype == v_PGNK.dtype == q_SHK.dtype, (q_SHK.dtype, k_PGNK.dtype, v_PGNK.dtype)
    if slopes_H is not None:
        slopes_H = slopes_H.float().contiguous()
    if cu_groups is not None:
        assert cu_groups.dtype == shared_R.dtype == torch.int32
        cu_groups, shared_R = cu_groups.contiguous(), shared_R.contiguous()
    positions = table_SB.shape[1] * page_size
    chunks = -(-positions // library().chunk_positions(page_size))
    partial = tape.empty(rows, heads, chunks, 2 + -(-head_size // 32) * 32) if chunks > 1 else None
    tensors = (q_SHK, k_PGNK, v_PGNK, out_SHK, table_SB, length_S, slopes_H, cu_groups, shared_R, partial)
    arguments = Call(
        rows,
        *(None if x is None else x.data_ptr() for x in tensors),
        *(heads, kv_heads, head_size, page_size, table_SB.shape[1], chunks, native.threads(), q_SHK.element_size()),
        window or NO_WINDOW,
        *q_SHK.stride()[:2],
        *k_PGNK.stride()[:3],
        *v_PGNK.stride()[:3],
        head_size**-0.5 if scale is None else scale,
    )
    tape.call(library().decode, arguments)
    return out_SHK


def write_pages_cpu(
    k_TGK: Tensor, v_TGK: Tensor, k_PGNK: Tensor, v_PGNK: Tensor, page_T: Tensor, slot_T: Tensor
) -> None:
    """See `kernels.attention_decode.write_pages`."""
    k_TGK, v_TGK = _last_dense(k_TGK), _last_dense(v_TGK)
    page_T, slot_T = page_T.contiguous(), slot_T.contiguous()
    assert page_T.dtype == slot_T.dtype == torch.int64
    assert k_TGK.dtype == v_TGK.dtype == k_PGNK.dtype == v_PGNK.dtype
    assert k_PGNK.stride(3) == v_PGNK.stride(3) == 1, (k_PGNK.stride(), v_PGNK.stride())
    tensors = (k_TGK, v_TGK, k_PGNK, v_PGNK, page_T, slot_T)
    steps = (*k_TGK.stride()[:2], *v_TGK.stride()[:2], *k_PGNK.stride()[:3], *v_PGNK.stride()[:3])
    size, (rows, heads, head_size) = k_TGK.element_size(), k_TGK.shape
    arguments = Write(
        rows,
        *(x.data_ptr() for x in tensors),
        *(heads, head_size * size, native.threads()),
        *(step * size for step in steps),
    )
    tape.call(library().write_pages, arguments)


def _last_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
