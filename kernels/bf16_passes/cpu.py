"""The passes in C++ (cpu.cpp) as autograd functions."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.common import native

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "cpu.cpp", *(FOLDER.parent / "common" / name for name in ("activations.h", "parts.h", "vector.h")))
BLOCK_ROWS = 64  # rows whose weight gradient is summed together; independent of the number of threads
POINTER, LONG, REAL, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
ARGUMENTS = {
    "rms_norm": (POINTER, POINTER, REAL, LONG, LONG, POINTER, POINTER, INT),
    "rms_norm_gradient": (*[POINTER] * 4, LONG, LONG, LONG, *[POINTER] * 3, INT),
    "rotate": (POINTER, POINTER, POINTER, LONG, LONG, LONG, REAL, POINTER, INT),
    "swiglu": (POINTER, POINTER, LONG, POINTER, INT),
    "swiglu_gradient": (POINTER, POINTER, POINTER, LONG, POINTER, POINTER, INT),
}


@cache
def library() -> ctypes.CDLL | None:
    """Return the built kernels, or None without a compiler."""
    lib = native.load("bf16_passes", SOURCES)
    for name, arguments in ARGUMENTS.items() if lib is not None else ():
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, None
    return lib


def _dense(*tensors: Tensor) -> list[Tensor]:
    assert all(x.dtype == torch.bfloat16 for x in tensors), [x.dtype for x in tensors]
    return [x.contiguous() for x in tensors]


class RMSNorm(torch.autograd.Function):
    """See `kernels.bf16_passes.rms_norm`."""

    @staticmethod
    def forward(ctx, x, weight_D, eps):
        x, weight_D = _dense(x, weight_D)
        width = weight_D.shape[0]
        rows, out = x.numel() // width, torch.empty_like(x)
        scale_T = torch.empty(rows, dtype=torch.float32)
        pointers = (out.data_ptr(), scale_T.data_ptr())
        library().rms_norm(x.data_ptr(), weight_D.data_ptr(), eps, rows, width, *pointers, native.threads())
        ctx.save_for_backward(x, weight_D, scale_T)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight_D, scale_T = ctx.saved_tensors
        (grad,) = _dense(grad)
        rows, width = len(scale_T), weight_D.shape[0]
        parts_BD = torch.empty(-(-rows // BLOCK_ROWS), width, dtype=torch.float32)
        dx, dweight_D = torch.empty_like(x), torch.empty_like(weight_D)
        read = (tensor.data_ptr() for tensor in (grad, x, weight_D, scale_T))
        written = (tensor.data_ptr() for tensor in (dx, parts_BD, dweight_D))
        library().rms_norm_gradient(*read, rows, width, BLOCK_ROWS, *written, native.threads())
        return dx, dweight_D, None


class Rotate(torch.autograd.Function):
    """See `kernels.bf16_passes.rotate`."""

    @staticmethod
    def forward(ctx, x_THK, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotated(x_THK, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_THK):
        return _rotated(grad_THK, *ctx.saved_tensors, -1.0), None, None


def _rotated(x_THK: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    (x_THK,), cos, sin = _dense(x_THK), cos.contiguous(), sin.contiguous()
    assert cos.dtype == sin.dtype == torch.float32, (cos.dtype, sin.dtype)
    rows, heads, size = x_THK.shape
    assert cos.shape == sin.shape == (rows, 1, size // 2), (cos.shape, sin.shape, x_THK.shape)
    out = torch.empty_like(x_THK)
    read = (tensor.data_ptr() for tensor in (x_THK, cos, sin))
    library().rotate(*read, rows, heads, size // 2, direction, out.data_ptr(), native.threads())
    return out


class SwiGLU(torch.autograd.Function):
    """See `kernels.bf16_passes.swiglu`."""

    @staticmethod
    def forward(ctx, gate, up):
        gate, up = _dense(gate, up)
        assert gate.shape == up.shape, (gate.shape, up.shape)
        out = torch.empty_like(gate)
        library().swiglu(gate.data_ptr(), up.data_ptr(), gate.numel(), out.data_ptr(), native.threads())
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        (grad,) = _dense(grad)
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        read = (tensor.data_ptr() for tensor in (grad, gate, up))
        library().swiglu_gradient(*read, gate.numel(), dgate.data_ptr(), dup.data_ptr(), native.threads())
        return dgate, dup
