"""linear_logprob's two walks over the vocabulary on CUDA, in Triton: logits in registers, dz a chunk at a time.

T tokens, D model, V vocabulary, P parts of it, C columns of a chunk. The forward is online over the vocabulary: a
program takes M tokens and one of P parts, so that a few tokens fill the GPU too, and leaves what `eager.statistics`
keeps. The backward makes the logits of a chunk again, turns them into dz in the same program, and leaves the products
with dz to cuBLAS. No two programs write one number: the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common.triton import INTERPRET, dot, tuned
from kernels.linear_logprob import eager

FORWARD_TOKENS = 4096  # tokens per walk over W
CHUNK_BYTES = 32 << 20  # of dz, held at a time
LEAST_COLUMNS = 256  # of dz
SUM_ELEMENTS = 6 << 20  # of a float32 sum of bfloat16 products: 24 MiB
WAVES = 16  # programs for each multiprocessor: of the last round of them, little stands idle
PART_COLUMNS = 1024  # smallest useful part
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # finite, because -inf - -inf is NaN


@triton.jit
def _place(T, column_blocks, M: tl.constexpr, GROUP: tl.constexpr):
    """Which block of tokens and which of columns is this program's: neighbours in time share both h and W in L2."""
    row_blocks = tl.cdiv(T, M)
    group = tl.program_id(0) // (GROUP * column_blocks)
    inside = tl.program_id(0) % (GROUP * column_blocks)
    size = tl.minimum(GROUP, row_blocks - group * GROUP)
    return group * GROUP + inside % size, inside // size


@triton.jit
def _tile(x, first, end, row_stride, k, column_stride, N: tl.constexpr, D: tl.constexpr, K: tl.constexpr):
    """[N, K]: rows first.. of x from column k on, zero from row `end` on and behind column D."""
    row, column = first + tl.arange(0, N), k + tl.arange(0, K)
    where = row.to(tl.int64)[:, None] * row_stride + column[None, :] * column_stride
    inside = (row < end)[:, None]
    if D % K != 0:
        inside = inside & (column < D)[None, :]
    return tl.load(x + where, mask=inside, other=0.0)


@triton.jit
def _products(
    h, ref, W, i0, T, j0, V, scale, h_row, h_column, ref_row, ref_column, W_row, W_column,
    D: tl.constexpr, PAIR: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """[M, N] of tokens i0.. and entries j0.., without the bias: the policy's, and the reference's (or the same)."""
    x = tl.zeros([M, N], tl.float32)
    y = x
    for k in range(0, D, K):
        W_KN = tl.trans(_tile(W, j0, V, W_row, k, W_column, N, D, K))
        x += dot(_tile(h, i0, T, h_row, k, h_column, M, D, K), W_KN)
        if PAIR:
            y += dot(_tile(ref, i0, T, ref_row, k, ref_column, M, D, K), W_KN)
    return x * scale, y * scale


@triton.jit
def _below(z, top):
    """z - top, where -inf becomes a number whose exponential is 0; a NaN stays one."""
    difference = z - top[:, None]
    return tl.where(difference < -1e4, -1e4, difference)


@triton.jit
def _totals(
    h, ref, W, bias, target, kept, found, T, V, part_columns, num_parts, scale,
    h_row, h_column, ref_row, ref_column, W_row, W_column,
    D: tl.constexpr, PAIR: tl.constexpr, BIAS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One part's `kept` [P, 6, T], and in `found` [3, T] what concerns the targets that lie in it."""
    row_block, part = _place(T, num_parts, M, GROUP)
    i0 = row_block * M
    i = i0 + tl.arange(0, M)
    target_M = tl.load(target + i, mask=i < T, other=-1)
    m = tl.full([M], LOWEST, tl.float32)
    s, q, at = tl.zeros([M], tl.float32), tl.zeros([M], tl.float32), tl.zeros([M], tl.float32)
    ref_m, ref_s, u, ref_at, apart_at = m, s, s, s, s
    begin = part * part_columns
    end = tl.minimum(begin + part_columns, V)
    for j0 in range(begin, end, N):
        x, y = _products(
            h, ref, W, i0, T, j0, V, scale, h_row, h_column, ref_row, ref_column, W_row, W_column, D, PAIR, M, N, K
        )
        j = j0 + tl.arange(0, N)
        offset = tl.load(bias + j, mask=j < V, other=0.0) * scale if BIAS else tl.zeros([N], tl.float32)
        here, inside = j[None, :] == target_M[:, None], (j < end)[None, :]
        z = tl.where(inside, x + offset[None, :], float("-inf"))
        top = tl.maximum(m, tl.max(z, 1))
        below = _below(z, top)
        e = tl.exp(below)
        shift = m - top
        shrink = tl.exp(shift)
        q = (q + s * shift) * shrink + tl.sum(e * below, 1)
        s = s * shrink + tl.sum(e, 1)
        m = top
        at += tl.sum(tl.where(here & inside, z, 0.0), 1)
        if PAIR:
            u = u * shrink + tl.sum(e * (x - y), 1)
            apart_at += tl.sum(tl.where(here & inside, x - y, 0.0), 1)
            z = tl.where(inside, y + offset[None, :], float("-inf"))
            top = tl.maximum(ref_m, tl.max(z, 1))
            ref_s = ref_s * tl.exp(ref_m - top) + tl.sum(tl.exp(_below(z, top)), 1)
            ref_m = top
            ref_at += tl.sum(tl.where(here & inside, z, 0.0), 1)
    out = kept + part.to(tl.int64) * 6 * T + i
    tl.store(out, m, mask=i < T)
    tl.store(out + T, s, mask=i < T)
    tl.store(out + 2 * T, q, mask=i < T)
    mine = (target_M >= begin) & (target_M < end) & (i < T)
    tl.store(found + i, at, mask=mine)
    if PAIR:
        tl.store(out + 3 * T, ref_m, mask=i < T)
        tl.store(out + 4 * T, ref_s, mask=i < T)
        tl.store(out + 5 * T, u, mask=i < T)
        tl.store(found + T + i, ref_at, mask=mine)
        tl.store(found + 2 * T + i, apart_at, mask=mine)


@triton.jit
def _gradient(
    h, ref, W, bias, target, per_token, target_dz, dz, T, V, first, columns, scale,
    h_row, h_column, ref_row, ref_column, W_row, W_column,
    D: tl.constexpr, PAIR: tl.constexpr, BIAS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dz [T, columns] of the entries from `first` on: what `eager.gradient` does to a tile."""
    row_block, column_block = _place(T, tl.cdiv(columns, N), M, GROUP)
    i0, j0 = row_block * M, first + column_block * N
    x, y = _products(
        h, ref, W, i0, T, j0, V, scale, h_row, h_column, ref_row, ref_column, W_row, W_column, D, PAIR, M, N, K
    )
    i, j = i0 + tl.arange(0, M), j0 + tl.arange(0, N)
    top = tl.load(per_token + i, mask=i < T, other=0.0)
    log_sum = tl.load(per_token + T + i, mask=i < T, other=0.0)
    a = tl.load(per_token + 2 * T + i, mask=i < T, other=0.0)
    b = tl.load(per_token + 3 * T + i, mask=i < T, other=0.0)
    offset = tl.load(bias + j, mask=j < V, other=0.0) * scale if BIAS else tl.zeros([N], tl.float32)
    logprob = _below(x + offset[None, :] - top[:, None], log_sum)
    weight = a[:, None] + b[:, None] * logprob
    if PAIR:
        c = tl.load(per_token + 4 * T + i, mask=i < T, other=0.0)
        apart = tl.load(per_token + 5 * T + i, mask=i < T, other=0.0)
        weight += c[:, None] * (x - y - apart[:, None])
    target_M = tl.load(target + i, mask=i < T, other=-1)
    target_dz_M = tl.load(target_dz + i, mask=i < T, other=0.0)
    tile = tl.where(j[None, :] == target_M[:, None], target_dz_M[:, None], tl.exp(logprob) * weight)
    where = i.to(tl.int64)[:, None] * columns + (j - first)[None, :]
    tl.store(dz + where, tile.to(dz.dtype.element_ty), mask=(i < T)[:, None] & (j < first + columns)[None, :])


def _config(M: int, N: int, K: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"M": M, "N": N, "K": K, "GROUP": 16}, num_warps=warps, num_stages=stages)


# Float32 products run on the ordinary units, in small tiles.
_HALF = [(128, 256, 64, 8, 3), (128, 128, 64, 8, 3), (64, 128, 64, 4, 4)]
_SINGLE = [(64, 64, 32, 4, 2), (64, 128, 16, 8, 2), (32, 64, 32, 4, 2)]
_TABLE = {2: [_config(*sizes) for sizes in _HALF], 4: [_config(*sizes) for sizes in _SINGLE]}
_KEY = ["D", "PAIR", "BIAS"]
_TOTALS = tuned(_totals, _TABLE, _config(16, 32, 16, 1, 1), _KEY)
_GRADIENT = tuned(_gradient, _TABLE, _config(16, 32, 16, 1, 1), _KEY)


def _operands(
    h_TD: Tensor, ref_TD: Tensor | None, W_VD: Tensor, bias_V: Tensor | None, scale: float, target_T: Tensor
) -> dict:
    """The arguments of both kernels."""
    ref = h_TD if ref_TD is None else ref_TD
    named = {"h": h_TD, "ref": ref, "W": W_VD}
    strides = {f"{name}_row": x.stride(0) for name, x in named.items()}
    strides |= {f"{name}_column": x.stride(1) for name, x in named.items()}
    sizes = {"T": h_TD.shape[0], "V": W_VD.shape[0], "D": W_VD.shape[1], "scale": scale}
    kinds = {"PAIR": ref_TD is not None, "BIAS": bias_V is not None}
    return {**named, "bias": W_VD if bias_V is None else bias_V, "target": target_T, **strides, **sizes, **kinds}


def _part_columns(tokens: int, vocab: int, device: torch.device) -> int:
    """Number of vocabulary entries per program of the forward."""
    multiprocessors = 1 if INTERPRET.value else torch.cuda.get_device_properties(device).multi_processor_count
    parts = max(1, WAVES * multiprocessors // triton.cdiv(tokens, 128))
    return max(PART_COLUMNS, triton.cdiv(vocab, parts * 256) * 256)


def chunk_tokens(h_TD: Tensor) -> int:
    """Number of tokens whose gradient is summed together."""
    tokens = CHUNK_BYTES // (LEAST_COLUMNS * h_TD.element_size())
    if h_TD.dtype != torch.float32:
        tokens = min(tokens, SUM_ELEMENTS // h_TD.shape[1])
    return max(1, tokens)


def totals(
    h_TD: Tensor, ref_TD: Tensor | None, W_VD: Tensor, bias_V: Tensor | None, scale: float, target_T: Tensor
) -> tuple[Tensor, Tensor]:
    """kept_6T and found_3T (see `eager`) of every token."""
    parts = []
    for start in range(0, max(1, h_TD.shape[0]), FORWARD_TOKENS):
        chunk = slice(start, start + FORWARD_TOKENS)
        ref = None if ref_TD is None else ref_TD[chunk]
        parts.append(_totals_of(h_TD[chunk], ref, W_VD, bias_V, scale, target_T[chunk]))
    return torch.cat([kept for kept, _ in parts], 1), torch.cat([found for _, found in parts], 1)


def _totals_of(h_TD, ref_TD, W_VD, bias_V, scale, target_T) -> tuple[Tensor, Tensor]:
    tokens, vocab = h_TD.shape[0], W_VD.shape[0]
    columns = _part_columns(max(1, tokens), vocab, h_TD.device)
    parts = triton.cdiv(vocab, columns)
    kept_P6T, found_3T = (x.float() for x in eager.nothing_kept(parts, tokens, h_TD.device))
    if tokens:
        _TOTALS[h_TD.element_size()][lambda meta: (triton.cdiv(tokens, meta["M"]) * parts,)](
            **_operands(h_TD, ref_TD, W_VD, bias_V, scale, target_T),
            kept=kept_P6T,
            found=found_3T,
            part_columns=columns,
            num_parts=parts,
        )
    return eager.merged(kept_P6T.double()), found_3T.double()


def sweep(
    h_TD: Tensor,
    ref_TD: Tensor | None,
    W_VD: Tensor,
    bias_V: Tensor | None,
    scale: float,
    per_token_6T: Tensor,
    target_T: Tensor,
    target_dz_T: Tensor,
    chunks: Sequence[slice],
    dh_TD: Tensor | None,
    dW_VD: Tensor | None,
) -> None:
    """One walk over dz. Writes the rows of dh_TD that `chunks` name, and dW_VD of them; None: not wanted."""
    assert dh_TD is None or len(chunks) == 1, "sums of dh are held for one chunk"
    vocab, hidden = W_VD.shape
    tokens = max(len(h_TD[chunk]) for chunk in chunks)
    columns = max(LEAST_COLUMNS, CHUNK_BYTES // (max(1, tokens) * h_TD.element_size()))
    if len(chunks) > 1:
        columns = min(columns, max(LEAST_COLUMNS, SUM_ELEMENTS // hidden))
    columns = min(columns // LEAST_COLUMNS * LEAST_COLUMNS, vocab)
    store = h_TD.new_empty(tokens * columns)
    operands = [
        _chunk_operands(h_TD, ref_TD, W_VD, bias_V, scale, per_token_6T, target_T, target_dz_T, c) for c in chunks
    ]
    sum_TD = None if dh_TD is None else torch.zeros_like(h_TD[chunks[0]], dtype=torch.float32)
    for first in range(0, vocab, columns):
        W_CD = W_VD[first : first + columns]
        sum_CD = None
        if dW_VD is not None and len(chunks) > 1:
            sum_CD = torch.zeros(W_CD.shape, dtype=torch.float32, device=W_CD.device)
        for of_chunk in operands:
            h, dz_TC = of_chunk["h"], store[: len(of_chunk["h"]) * len(W_CD)].view(-1, len(W_CD))
            _make_dz(of_chunk, dz_TC, first)
            if sum_TD is not None:
                _add_product(sum_TD, dz_TC, W_CD)
            if sum_CD is not None:
                _add_product(sum_CD, dz_TC.T, h)
            elif dW_VD is not None:
                torch.mm(dz_TC.T, h, out=dW_VD[first : first + columns])
        if sum_CD is not None:
            dW_VD[first : first + columns] = sum_CD
    if dh_TD is not None:
        dh_TD[chunks[0]] = sum_TD


def _chunk_operands(h_TD, ref_TD, W_VD, bias_V, scale, per_token_6T, target_T, target_dz_T, chunk: slice) -> dict:
    ref = None if ref_TD is None else ref_TD[chunk]
    per_token = {"per_token": per_token_6T[:, chunk].contiguous(), "target_dz": target_dz_T[chunk].contiguous()}
    return _operands(h_TD[chunk], ref, W_VD, bias_V, scale, target_T[chunk]) | per_token


def _make_dz(operands: dict, dz_TC: Tensor, first: int) -> None:
    tokens, columns = dz_TC.shape
    if tokens:
        _GRADIENT[dz_TC.element_size()][
            lambda meta: (triton.cdiv(tokens, meta["M"]) * triton.cdiv(columns, meta["N"]),)
        ](**operands, dz=dz_TC, first=first, columns=columns)


def _add_product(sum_RD: Tensor, a_RC: Tensor, b_CD: Tensor) -> None:
    """sum += a b, a float32 sum of products of any dtype."""
    if sum_RD.dtype == a_RC.dtype:
        sum_RD.addmm_(a_RC, b_CD)
    elif sum_RD.is_cuda:
        torch.addmm(sum_RD, a_RC, b_CD, out_dtype=sum_RD.dtype, out=sum_RD)
    else:
        sum_RD.addmm_(a_RC.to(sum_RD.dtype), b_CD.to(sum_RD.dtype))
