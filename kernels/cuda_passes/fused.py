"""The passes on CUDA, in Triton: a program takes a row of a norm, or a block of a row of an activation."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.common.norm import Norm
from kernels.common.triton import rounded

BLOCK = 1024  # columns of an activation per program


@triton.jit
def _norm_of(x, weight, bias, eps, d, D, CENTRED: tl.constexpr, BIAS: tl.constexpr):
    """RMSNorm of a row in registers, or with BIAS LayerNorm; zeros stay after column D."""
    inside = d < D
    if BIAS:
        x = tl.where(inside, x - tl.sum(x, 0) / D, 0.0)
    w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        w = tl.where(inside, w + 1.0, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / D + eps) * w
    if BIAS:
        y += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    return y


@triton.jit
def _add_norm(
    h, x, weight, bias, x_weight, next_bias, r_out, y_out, h_row, x_row, eps, x_eps,
    D: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, NORM: tl.constexpr, CENTRED: tl.constexpr,
    BIAS: tl.constexpr, X_NORM: tl.constexpr, X_CENTRED: tl.constexpr, NEXT: tl.constexpr,
):  # fmt: skip
    """r = h + x or h + x_norm(x), y = norm(r); writes r + next_bias, and y."""
    t, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = d < D
    r = tl.load(h + t * h_row + d, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(x + t * x_row + d, mask=inside, other=0.0).to(tl.float32)
        if X_NORM:
            added = _norm_of(added, x_weight, x_weight, x_eps, d, D, X_CENTRED, False)
        r = rounded(r + added, h.dtype.element_ty).to(tl.float32)
    if NORM:
        y = _norm_of(r, weight, bias, eps, d, D, CENTRED, BIAS)
        tl.store(y_out + t * D + d, rounded(y, h.dtype.element_ty), mask=inside)
    if NEXT:
        r += tl.load(next_bias + d, mask=inside, other=0.0).to(tl.float32)
    if ADD or NEXT:
        tl.store(r_out + t * D + d, rounded(r, h.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_of(x):
    """x / 2 (1 + tanh(u)) is x sigmoid(2 u): no difference of two numbers near 1 where x is very negative."""
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def _activate(
    x, up, out, x_row, up_row, N,
    SWISH: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """silu(x) with SWISH, else gelu(x); with GATED times up."""
    t, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    y = tl.load(x + t * x_row + n, mask=inside, other=0.0).to(tl.float32)
    if SWISH:
        y = y / (1.0 + tl.exp(-y))
    else:
        y = _gelu_of(y)
    if GATED:
        y *= tl.load(up + t * up_row + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + t * N + n, rounded(y, out.dtype.element_ty), mask=inside)


def add_norm_triton(
    h_TD: Tensor,
    x_TD: Tensor | None,
    norm: Norm | None,
    x_norm: Norm | None = None,
    next_bias_D: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See `kernels.cuda_passes.add_norm`."""
    rows, width = h_TD.shape
    assert h_TD.stride(1) == 1 and (x_TD is None or x_TD.stride(1) == 1 and x_TD.shape == h_TD.shape)
    assert x_norm is None or x_norm.bias_D is None, "x_norm is an RMSNorm"
    writes_r = x_TD is not None or next_bias_D is not None
    r_TD = h_TD.new_empty(rows, width) if writes_r else h_TD
    y_TD = None if norm is None else h_TD.new_empty(rows, width)
    if rows:
        block = triton.next_power_of_2(width)
        _add_norm[(rows,)](
            h_TD, x_TD, *(norm[:2] if norm else (None, None)), x_norm and x_norm.weight_D, next_bias_D, r_TD, y_TD,
            h_TD.stride(0), 0 if x_TD is None else x_TD.stride(0), norm.eps if norm else 0.0,
            x_norm.eps if x_norm else 0.0,
            D=width, BLOCK=block, ADD=x_TD is not None, NORM=norm is not None, CENTRED=bool(norm and norm.centred),
            BIAS=bool(norm) and norm.bias_D is not None, X_NORM=x_norm is not None,
            X_CENTRED=bool(x_norm and x_norm.centred), NEXT=next_bias_D is not None,
            num_warps=min(16, max(1, block // 256)),
        )  # fmt: skip
    return r_TD, y_TD


def gated_triton(activation: str, gate_TN: Tensor, up_TN: Tensor) -> Tensor:
    """See `kernels.cuda_passes.gated`."""
    assert gate_TN.shape == up_TN.shape and up_TN.stride(1) == 1, (gate_TN.shape, up_TN.shape, up_TN.stride())
    return _run(gate_TN, up_TN, {"swiglu": True, "geglu": False}[activation])


def gelu_triton(x_TN: Tensor) -> Tensor:
    """See `kernels.cuda_passes.gelu`."""
    return _run(x_TN, None, False)


def _run(x_TN: Tensor, up_TN: Tensor | None, swish: bool) -> Tensor:
    (rows, width), gated = x_TN.shape, up_TN is not None
    assert x_TN.stride(1) == 1, x_TN.stride()
    out_TN = x_TN.new_empty(rows, width)
    if rows:
        _activate[(rows, triton.cdiv(width, BLOCK))](
            x_TN, up_TN, out_TN, x_TN.stride(0), up_TN.stride(0) if gated else 0, width,
            SWISH=swish, GATED=gated, BLOCK=BLOCK,
        )  # fmt: skip
    return out_TN
