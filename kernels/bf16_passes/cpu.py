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
    "rms_norm": (*[POINTER] * 3, REAL, REAL, LONG, LONG, POINTER, POINTER, INT),
    "rms_norm_gradient": (*[POINTER] * 4, REAL, LONG, LONG, LONG, *[POINTER] * 3, INT),
    "rotate": (POINTER, POINTER, POINTER, LONG, LONG, LONG, REAL, POINTER, INT),
    **dict.fromkeys(("swiglu", "geglu"), (POINTER, POINTER, LONG, POINTER, INT)),
    **dict.fromkeys(("swiglu_gradient", "geglu_gradient"), (*[POINTER] * 3, LONG, POINTER, POINTER, INT)),
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
    """See `kernels.bf16_passes.rms_norm`; `offset` is added to the weight in float32."""

    @staticmethod
    def forward(ctx, x, weight_D, eps, offset, residual):
        x, weight_D = _dense(x, weight_D)
        width = weight_D.shape[0]
        assert x.shape[-1] == width, (x.shape, width)
        rows, out = x.numel() // width, torch.empty_like(x)
        scale_T = torch.empty(rows, dtype=torch.float32)
        read = (x.data_ptr(), weight_D.data_ptr(), None)
        if residual is not None:
            assert residual.shape == x.shape, (residual.shape, x.shape)
            (residual,) = _dense(residual)
            read = (*read[:2], residual.data_ptr())
        written = (out.data_ptr(), scale_T.data_ptr())
        library().rms_norm(*read, offset, eps, rows, width, *written, native.threads())
        ctx.offset = offset
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
        library().rms_norm_gradient(*read, ctx.offset, rows, width, BLOCK_ROWS, *written, native.threads())
        return dx, dweight_D, None, None, grad if ctx.needs_input_grad[4] else None


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


class Gated(torch.autograd.Function):
    """A gated activation by its name in the library. See `kernels.bf16_passes.swiglu` and `geglu`."""

    @staticmethod
    def forward(ctx, name, gate, up):
        gate, up = _dense(gate, up)
        assert gate.shape == up.shape, (gate.shape, up.shape)
        out = torch.empty_like(gate)
        getattr(library(), name)(gate.data_ptr(), up.data_ptr(), gate.numel(), out.data_ptr(), native.threads())
        ctx.name = name
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        (grad,) = _dense(grad)
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        read, written = (grad.data_ptr(), gate.data_ptr(), up.data_ptr()), (dgate.data_ptr(), dup.data_ptr())
        getattr(library(), f"{ctx.name}_gradient")(*read, gate.numel(), *written, native.threads())
        return None, dgate, dup
