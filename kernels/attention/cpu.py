"""Packed causal attention on CPU: call the C++ kernel in cpu.cpp, or plain PyTorch where it cannot be built."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels.attention.eager import attention_eager
from kernels.common import native

DTYPES = (torch.float32, torch.bfloat16)
NO_WINDOW = 1 << 30  # positions: longer than any sequence


class _Packed(Structure):
    _fields_ = [("data", c_void_p), ("token", c_int64), ("head", c_int64)]

    @classmethod
    def of(cls, x_THK: Tensor) -> _Packed:
        return cls(x_THK.data_ptr(), x_THK.stride(0), x_THK.stride(1))


class _Segment(Structure):
    _fields_ = [("k", _Packed), ("v", _Packed), ("first", c_int64), ("last", c_int64)]


class _Geometry(Structure):
    _fields_ = [
        *(("cu_seqlens", c_void_p), ("S", c_int), ("H", c_int), ("G", c_int), ("K", c_int)),
        *(("slopes", c_void_p), ("scale", c_float), ("threads", c_int), ("window", c_int)),
        *(("segments", POINTER(_Segment)), ("first_query", c_int)),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """Return the C++ kernel, built on first use, or None where it cannot be built."""
    folder = Path(__file__).parent
    lib = native.load("attention", [folder / "cpu.cpp", folder.parent / "common" / "vector.h"])
    if lib is not None:
        x, packed = c_void_p, POINTER(_Packed)
        lib.attention_forward.argtypes = [POINTER(_Geometry), packed, packed, packed, c_int, x, x]
        lib.attention_forward.restype = None
        lib.attention_backward.argtypes = [POINTER(_Geometry), *[packed] * 5, c_int, c_int, x, x, x, x]
        lib.attention_backward.restype = None
    return lib


def attention_cpu(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    slopes_H: Tensor | None,
    scale: float,
    window: int | None,
) -> Tensor:
    """See `kernels.attention.attention`."""
    if q_THK.dtype not in DTYPES or library() is None:
        return attention_eager(q_THK, k_TGK, v_TGK, lengths, slopes_H, scale, window)
    assert q_THK.dtype == k_TGK.dtype == v_TGK.dtype, (q_THK.dtype, k_TGK.dtype, v_TGK.dtype)
    assert k_TGK.shape == v_TGK.shape and q_THK.shape[1] % k_TGK.shape[1] == 0, (q_THK.shape, k_TGK.shape, v_TGK.shape)
    return _Attention.apply(q_THK, k_TGK, v_TGK, cu_seqlens, slopes_H, scale, window)


def attention_after_cpu(
    q_NHK: Tensor,
    segments: Sequence[tuple[Tensor, Tensor]],
    slopes_H: Tensor | None,
    scale: float,
    window: int | None,
    out_NHK: Tensor,
) -> None:
    """See `kernels.attention.attention_after`."""
    q_NHK, slopes_H = _rows(q_NHK), None if slopes_H is None else slopes_H.float().contiguous()
    rows = [(_rows(k_PGK), _rows(v_PGK)) for k_PGK, v_PGK in segments]
    array, last = (_Segment * len(rows))(), 0
    for i, (k_PGK, v_PGK) in enumerate(rows):
        first, last = last, last + k_PGK.shape[0]
        array[i] = _Segment(_Packed.of(k_PGK), _Packed.of(v_PGK), first, last)
    bounds = torch.tensor([0, last], dtype=torch.int32)
    geometry = _geometry(q_NHK, rows[0][0], bounds, slopes_H, scale, window)
    geometry.segments, geometry.first_query = array, last - q_NHK.shape[0]
    assert out_NHK.is_contiguous() and out_NHK.shape == q_NHK.shape, (out_NHK.shape, out_NHK.stride(), q_NHK.shape)
    assert {x.dtype for pair in rows for x in pair} == {q_NHK.dtype} == {out_NHK.dtype}
    packed, half = _Packed.of(q_NHK), int(q_NHK.dtype == torch.bfloat16)
    library().attention_forward(byref(geometry), packed, packed, packed, half, out_NHK.data_ptr(), None)


def _rows(x_THK: Tensor) -> Tensor:
    """Return x with a contiguous last dimension, which the kernel needs. Heads and tokens may have any strides."""
    return x_THK if x_THK.stride(2) == 1 else x_THK.contiguous()


def _geometry(
    q_THK: Tensor, k_TGK: Tensor, cu_seqlens: Tensor, slopes_H: Tensor | None, scale: float, window: int | None
) -> _Geometry:
    slopes = None if slopes_H is None else slopes_H.data_ptr()
    num_sequences = cu_seqlens.shape[0] - 1
    sizes = (num_sequences, q_THK.shape[1], k_TGK.shape[1], q_THK.shape[2])
    return _Geometry(cu_seqlens.data_ptr(), *sizes, slopes, scale, native.threads(), window or NO_WINDOW)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_seqlens, slopes_H, scale, window):
        q, k, v = _rows(q), _rows(k), _rows(v)
        cu_seqlens = cu_seqlens.to(torch.int32).contiguous()
        slopes_H = None if slopes_H is None else slopes_H.float().contiguous()
        geometry = _geometry(q, k, cu_seqlens, slopes_H, scale, window)
        out = torch.empty(q.shape, dtype=q.dtype)
        lse_TH = torch.empty(q.shape[:2], dtype=torch.float32)
        half = int(q.dtype == torch.bfloat16)
        packed = [byref(_Packed.of(x)) for x in (q, k, v)]
        library().attention_forward(byref(geometry), *packed, half, out.data_ptr(), lse_TH.data_ptr())
        ctx.save_for_backward(q, k, v, out, lse_TH, cu_seqlens, slopes_H)
        ctx.scale, ctx.window = scale, window
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse_TH, cu_seqlens, slopes_H = ctx.saved_tensors
        grad = _rows(grad)
        geometry = _geometry(q, k, cu_seqlens, slopes_H, ctx.scale, ctx.window)
        groups, half = q.shape[1] // k.shape[1], int(q.dtype == torch.bfloat16)
        dq = torch.empty(q.shape, dtype=q.dtype)
        # Query heads that share a key head write separate gradients, summed below in a fixed order.
        dk, dv = (torch.empty(q.shape, dtype=q.dtype if groups == 1 else torch.float32) for _ in range(2))
        packed = [byref(_Packed.of(x)) for x in (q, k, v, out, grad)]
        library().attention_backward(
            *(byref(geometry), *packed, half, int(groups > 1), lse_TH.data_ptr()),
            *(x.data_ptr() for x in (dq, dk, dv)),
        )
        if groups > 1:
            dk, dv = (x.unflatten(1, (-1, groups)).sum(2).to(q.dtype) for x in (dk, dv))
        return dq, dk, dv, None, None, None, None
