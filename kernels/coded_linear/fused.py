"""coded_linear and its gradient on CUDA, in Triton: weights are dequantised in registers, tile by tile.

A program takes M rows, J columns and one of P parts of the inner dimension, so that a few rows fill the GPU too; the
parts are added in order. The same kernel serves decoding and packs, in tiles chosen by the number of rows. Shapes: T
rows, N outputs, I inputs, G groups of 32 inputs, K of the inner dimension at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.coded_linear.tiles import TILES, part_size, tiles_for
from kernels.common.codes import GROUP, Codes
from kernels.common.triton import blocks_of, dot, rounded

SUM_BLOCK = 1024
_GROUP = tl.constexpr(GROUP)


@triton.jit
def _values(
    codes, scales, row0, N, input0, groups, dtype: tl.constexpr,
    BITS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """[R, C] values from row row0 and input input0 on, a multiple of 32; zeros beyond the weight."""
    row = row0 + tl.arange(0, R)
    inside, row = (row < N)[:, None], row.to(tl.int64)[:, None]
    per_byte: tl.constexpr = 8 // BITS
    byte = (tl.arange(0, C // per_byte) + input0 // per_byte)[None, :]
    row_bytes = groups * (_GROUP // per_byte)
    code = tl.load(codes + row * row_bytes + byte, mask=inside & (byte < row_bytes), other=0)
    if BITS == 4:  # two's complement of four bits
        low, high = (code & 15).to(tl.int8), (code >> 4).to(tl.int8)
        code = tl.interleave((low ^ 8) - 8, (high ^ 8) - 8)
    group = (tl.arange(0, C // _GROUP) + input0 // _GROUP)[None, :]
    scale = tl.load(scales + row * groups + group, mask=inside & (group < groups), other=0.0).to(tl.float32)
    value = tl.reshape(code.to(tl.float32), [R, C // _GROUP, _GROUP]) * scale[:, :, None]
    return rounded(tl.reshape(value, [R, C]), dtype)


@triton.jit
def _product(
    x, codes, scales, bias, out, T, N, groups, inner, columns, part_size, x_row, x_column,
    BITS: tl.constexpr, GRADIENT: tl.constexpr, BIAS: tl.constexpr, WHOLE: tl.constexpr,
    M: tl.constexpr, J: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Write x @ values.T, or with GRADIENT x @ values, to out [P, T, columns]: program_id(1) is the part.

    WHOLE: P is 1, and out is the result. Otherwise it is float32.
    """
    row_block, column_block = blocks_of(T, tl.cdiv(columns, J), M, 8)
    i0, j0 = row_block * M, column_block * J
    i, j = i0 + tl.arange(0, M), j0 + tl.arange(0, J)
    part = tl.program_id(1)
    begin = part * part_size
    end = tl.minimum(begin + part_size, inner)
    acc = tl.zeros([M, J], tl.float32)
    x_rows = x + i.to(tl.int64)[:, None] * x_row
    for k0 in range(begin, end, K):
        k = (k0 + tl.arange(0, K))[None, :]
        x_MK = tl.load(x_rows + k.to(tl.int64) * x_column, mask=(i < T)[:, None] & (k < end), other=0.0)
        if GRADIENT:
            value_KJ = _values(codes, scales, k0, N, j0, groups, x.dtype.element_ty, BITS, K, J)
        else:
            value_KJ = tl.trans(_values(codes, scales, j0, N, k0, groups, x.dtype.element_ty, BITS, J, K))
        acc += dot(x_MK, value_KJ)
    if BIAS:
        acc += tl.load(bias + j, mask=j < columns, other=0.0).to(tl.float32)[None, :]
    where = (part.to(tl.int64) * T + i)[:, None] * columns + j[None, :]
    result = rounded(acc, out.dtype.element_ty) if WHOLE else acc
    tl.store(out + where, result, mask=(i < T)[:, None] & (j < columns)[None, :])


@triton.jit
def _sum(parts, bias, out, size, columns, P, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """Add parts [P, T, columns] in order, and the bias; size is T * columns."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc, source = tl.zeros([BLOCK], tl.float32), parts + at
    for _ in range(P):
        acc += tl.load(source, mask=at < size, other=0.0)
        source += size
    if BIAS:
        acc += tl.load(bias + at % columns, mask=at < size, other=0.0).to(tl.float32)
    tl.store(out + at, rounded(acc, out.dtype.element_ty), mask=at < size)


def coded_linear_triton(x_TI: Tensor, weight: Codes, bias_N: Tensor | None = None) -> Tensor:
    """See `kernels.coded_linear.coded_linear`."""
    assert bias_N is None or bias_N.shape == weight.shape[:1] and bias_N.is_contiguous()
    return _run(x_TI, weight, bias_N, False)


def coded_linear_gradient_triton(grad_TN: Tensor, weight: Codes) -> Tensor:
    """See `kernels.coded_linear.coded_linear_gradient`."""
    return _run(grad_TN, weight, None, True)


def _run(x: Tensor, weight: Codes, bias: Tensor | None, gradient: bool) -> Tensor:
    inner, columns = weight.shape if gradient else weight.shape[::-1]
    rows = x.shape[0]
    assert x.shape == (rows, inner) and x.element_size() in TILES, (x.shape, x.dtype, weight.shape)
    assert weight.codes.is_contiguous() and weight.scale_NG.is_contiguous()
    out = x.new_empty(rows, columns)
    if not rows:
        return out
    size = tiles_for(rows, x.element_size())
    tiles = triton.cdiv(rows, size.M) * triton.cdiv(columns, size.J)
    per_part = part_size(inner, tiles, size.K)
    parts = triton.cdiv(inner, per_part)
    found = out if parts == 1 else torch.empty(parts, rows, columns, dtype=torch.float32, device=x.device)
    has_bias = bias is not None
    _product[(tiles, parts)](
        x, weight.codes, weight.scale_NG, bias, found, rows, weight.shape[0], weight.scale_NG.shape[1], inner, columns,
        per_part, *x.stride(),
        BITS=weight.bits, GRADIENT=gradient, BIAS=has_bias and parts == 1, WHOLE=parts == 1,
        M=size.M, J=size.J, K=size.K, num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip
    if parts > 1:
        _sum[(triton.cdiv(out.numel(), SUM_BLOCK),)](
            found, bias, out, out.numel(), columns, parts, BIAS=has_bias, BLOCK=SUM_BLOCK
        )
    return out
