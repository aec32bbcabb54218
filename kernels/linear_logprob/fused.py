"""The walks of linear_logprob over the vocabulary on CUDA, in Triton.

Shapes: T tokens, D model, V vocabulary, P parts of the vocabulary, C columns (vocabulary entries) of a chunk of dz.

Forward: a program takes M tokens and one of P parts, so that a few tokens fill the GPU too. It keeps the logits in
registers and stores the totals of `eager.statistics`; a second kernel merges the parts and computes the results.
Backward: a program recomputes a tile of logits and stores its dz; cuBLAS multiplies with dz, one chunk at a time. No
two programs write the same number, so the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common.triton import INTERPRET, Config, blocks_of, chosen, dot
from kernels.linear_logprob.columns import Results

FORWARD_TOKENS = 4096  # tokens per walk over W
CHUNK_BYTES = 32 << 20  # of dz, held at a time
LEAST_COLUMNS = 256  # of dz
SUM_ELEMENTS = 6 << 20  # of a float32 sum of bfloat16 products: 24 MiB
WAVES = 16  # programs per multiprocessor: few multiprocessors idle during the last wave
PART_COLUMNS = 1024  # of the smallest part worth a program
FEW_TOKENS = 4  # of a program of `_results`, which reads whole rows of h and W
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # finite: -inf - -inf would be NaN


@triton.jit
def _tile(x, first, end, row_stride, k, column_stride, N: tl.constexpr, D: tl.constexpr, K: tl.constexpr):
    """[N, K] of x from row `first` and column k on; zeros from row `end` and from column D on."""
    row, column = first + tl.arange(0, N), k + tl.arange(0, K)
    where = row.to(tl.int64)[:, None] * row_stride + column[None, :] * column_stride
    inside = (row < end)[:, None]
    if D % K != 0:
        inside = inside & (column < D)[None, :]
    return tl.load(x + where, mask=inside, other=0.0)


@triton.jit
def _logits(
    h, W, i0, T, j0, V, scale, h_row, h_column, W_row, W_column,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """[M, N] logits of tokens from i0 on and vocabulary entries from j0 on."""
    z = tl.zeros([M, N], tl.float32)
    for k in range(0, D, K):
        W_KN = tl.trans(_tile(W, j0, V, W_row, k, W_column, N, D, K))
        z += dot(_tile(h, i0, T, h_row, k, h_column, M, D, K), W_KN)
    return z * scale


@triton.jit
def _below(z, top):
    """z - top, with a number whose exponential is 0 instead of -inf; NaN stays NaN."""
    difference = z - top[:, None]
    return tl.where(difference < -1e4, -1e4, difference)


@triton.jit
def _totals(
    h, W, target, totals, target_logit, T, V, part_columns, num_parts, scale, h_row, h_column, W_row, W_column,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write one part of totals [P, 3, T], and to target_logit [T] the logits of targets in this part."""
    row_block, part = blocks_of(T, num_parts, M, GROUP)
    i0 = row_block * M
    i = i0 + tl.arange(0, M)
    target_M = tl.load(target + i, mask=i < T, other=-1)
    m = tl.full([M], LOWEST, tl.float32)
    s, q, at_target = tl.zeros([M], tl.float32), tl.zeros([M], tl.float32), tl.zeros([M], tl.float32)
    begin = part * part_columns
    end = tl.minimum(begin + part_columns, V)
    for j0 in range(begin, end, N):
        z = _logits(h, W, i0, T, j0, V, scale, h_row, h_column, W_row, W_column, D, M, N, K)
        j = j0 + tl.arange(0, N)
        here, inside = j[None, :] == target_M[:, None], (j < end)[None, :]
        z = tl.where(inside, z, float("-inf"))
        top = tl.maximum(m, tl.max(z, 1))
        below = _below(z, top)
        e = tl.exp(below)
        shift = m - top
        shrink = tl.exp(shift)
        q = (q + s * shift) * shrink + tl.sum(e * below, 1)
        s = s * shrink + tl.sum(e, 1)
        m = top
        at_target += tl.sum(tl.where(here & inside, z, 0.0), 1)
    out = totals + part.to(tl.int64) * 3 * T + i
    tl.store(out, m, mask=i < T)
    tl.store(out + T, s, mask=i < T)
    tl.store(out + 2 * T, q, mask=i < T)
    mine = (target_M >= begin) & (target_M < end) & (i < T)
    tl.store(target_logit + i, at_target, mask=mine)


@triton.jit
def _gradient(
    h, W, target, per_token, target_dz, dz, T, V, first, columns, per_token_row, scale,
    h_row, h_column, W_row, W_column,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write dz [T, columns] of the vocabulary entries from `first` on, as `eager.gradient` does for a tile."""
    row_block, column_block = blocks_of(T, tl.cdiv(columns, N), M, GROUP)
    i0, j0 = row_block * M, first + column_block * N
    z = _logits(h, W, i0, T, j0, V, scale, h_row, h_column, W_row, W_column, D, M, N, K)
    i, j = i0 + tl.arange(0, M), j0 + tl.arange(0, N)
    top = tl.load(per_token + i, mask=i < T, other=0.0)
    log_sum = tl.load(per_token + per_token_row + i, mask=i < T, other=0.0)
    a = tl.load(per_token + 2 * per_token_row + i, mask=i < T, other=0.0)
    b = tl.load(per_token + 3 * per_token_row + i, mask=i < T, other=0.0)
    logprob = _below(z - top[:, None], log_sum)
    weight = a[:, None] + b[:, None] * logprob
    target_M = tl.load(target + i, mask=i < T, other=-1)
    target_dz_M = tl.load(target_dz + i, mask=i < T, other=0.0)
    tile = tl.where(j[None, :] == target_M[:, None], target_dz_M[:, None], tl.exp(logprob) * weight)
    where = i.to(tl.int64)[:, None] * columns + (j - first)[None, :]
    tl.store(dz + where, tile.to(dz.dtype.element_ty), mask=(i < T)[:, None] & (j < first + columns)[None, :])


@triton.jit
def _results(
    h, W, target, totals, walked, out_logprob, out_logsumexp, out_entropy, out_top, out_log_sum, T, num_parts, scale,
    h_row, h_column, W_row, W_column,
    D: tl.constexpr, M: tl.constexpr, K: tl.constexpr, PP: tl.constexpr,
):  # fmt: skip
    """Merge the parts of M tokens' totals and write what `columns.results_of` returns, in float64 but for the dots."""
    i, p = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, PP)
    inside = i < T
    row = tl.load(target + i, mask=inside, other=0).to(tl.int64)
    product = tl.zeros([M, K], tl.float32)
    for k in range(0, D, K):
        column = k + tl.arange(0, K)
        here = inside[:, None] & (column < D)[None, :]
        h_MK = tl.load(h + i.to(tl.int64)[:, None] * h_row + column[None, :] * h_column, mask=here, other=0.0)
        W_MK = tl.load(W + row[:, None] * W_row + column[None, :] * W_column, mask=here, other=0.0)
        product += h_MK.to(tl.float32) * W_MK.to(tl.float32)
    exact = tl.sum(product, 1).to(tl.float64) * scale
    at, here = totals + p[:, None] * 3 * T + i[None, :], (p < num_parts)[:, None] & inside[None, :]
    m_PM = tl.load(at, mask=here, other=LOWEST).to(tl.float64)
    s_PM = tl.load(at + T, mask=here, other=0.0).to(tl.float64)
    q_PM = tl.load(at + 2 * T, mask=here, other=0.0).to(tl.float64)
    m = tl.max(m_PM, 0)
    shift_PM = m_PM - m[None, :]
    shrink_PM = tl.exp(shift_PM)
    s, q = tl.sum(s_PM * shrink_PM, 0), tl.sum((q_PM + s_PM * shift_PM) * shrink_PM, 0)
    top = tl.where(m < exact, exact, m)
    was = tl.load(walked + i, mask=inside, other=0.0).to(tl.float64)
    old, before, after = tl.exp(m - top), tl.exp(was - top), tl.exp(exact - top)
    total = s * old - before + after
    total = tl.where(total < after, after, total)  # not tl.maximum, which would drop a NaN
    first = (q + s * (m - top)) * old
    first += tl.where(after > 0, after * (exact - top), 0.0) - tl.where(before > 0, before * (was - top), 0.0)
    log_sum = tl.log(total)
    logsumexp, short = top + log_sum, top.to(tl.float32)
    tl.store(out_logprob + i, (exact - top - log_sum).to(tl.float32), mask=inside)
    tl.store(out_logsumexp + i, logsumexp.to(tl.float32), mask=inside)
    tl.store(out_entropy + i, (log_sum - first / total).to(tl.float32), mask=inside)
    tl.store(out_top + i, short, mask=inside)
    tl.store(out_log_sum + i, (logsumexp - short).to(tl.float32), mask=inside)


@triton.jit
def _gradient_of(gradient, stride, i, T):
    """float32 gradients at columns i, zeros for None."""
    out = tl.zeros_like(i).to(tl.float32)
    if gradient is not None:
        out = tl.load(gradient + i.to(tl.int64) * stride, mask=i < T, other=0.0)
    return out


@triton.jit
def _factors(
    logprob, entropy, top, log_sum, g_logprob, g_logsumexp, g_entropy, out, T,
    logprob_stride, logsumexp_stride, entropy_stride, scale, N: tl.constexpr,
):  # fmt: skip
    """Write what `columns.factors` returns: per_token_4T and then the targets' gradients, float32 [5, T]."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    inside = i < T
    g_logprob_N = _gradient_of(g_logprob, logprob_stride, i, T)
    a = _gradient_of(g_logsumexp, logsumexp_stride, i, T)
    b = -_gradient_of(g_entropy, entropy_stride, i, T)
    logprob_N = tl.load(logprob + i, mask=inside, other=0.0)
    a += b * tl.load(entropy + i, mask=inside, other=0.0)
    at_target = a + b * tl.where(logprob_N < -1e4, -1e4, logprob_N)
    # 1 - p in float64, near p = 1 by its series: a confident token loses no digits.
    x = logprob_N.to(tl.float64)
    less = tl.where(x > -1e-5, x + x * x / 2, tl.exp(x) - 1)
    target_dz = scale * (at_target * tl.exp(logprob_N) - g_logprob_N * less.to(tl.float32))
    tl.store(out + i, tl.load(top + i, mask=inside), mask=inside)
    tl.store(out + T + i, tl.load(log_sum + i, mask=inside), mask=inside)
    tl.store(out + 2 * T + i, scale * (a - g_logprob_N), mask=inside)
    tl.store(out + 3 * T + i, scale * b, mask=inside)
    tl.store(out + 4 * T + i, target_dz, mask=inside)


def _config(M: int, N: int, K: int, warps: int, stages: int, shared: int) -> Config:
    return Config({"M": M, "N": N, "K": K, "GROUP": 16}, warps, stages, shared)


# For each kernel and size of an element in bytes: the first that fits the device is used. Float32 products run on the
# CUDA cores, not the tensor cores, in small tiles.
_SMALL = _config(16, 32, 16, 1, 1, 16)
_HALF = [_config(128, 128, 64, 8, 3, 64), _config(128, 256, 64, 8, 3, 96), _config(64, 128, 64, 4, 3, 48), _SMALL]
_SINGLE = [_config(64, 64, 32, 4, 2, 16), _config(64, 128, 16, 8, 2, 12), _config(32, 64, 32, 4, 2, 12), _SMALL]
CONFIGS = {(kernel, size): configs for kernel in ("totals", "gradient") for size, configs in ((2, _HALF), (4, _SINGLE))}


def _operands(h_TD: Tensor, W_VD: Tensor, scale: float, target_T: Tensor) -> dict:
    """Return the arguments that both kernels take."""
    strides = {"h_row": h_TD.stride(0), "h_column": h_TD.stride(1), "W_row": W_VD.stride(0), "W_column": W_VD.stride(1)}
    sizes = {"T": h_TD.shape[0], "V": W_VD.shape[0], "D": W_VD.shape[1], "scale": scale}
    return {"h": h_TD, "W": W_VD, "target": target_T, **strides, **sizes}


def _part_columns(tokens: int, vocab: int, device: torch.device) -> int:
    """Return how many vocabulary entries one program of the forward walks over."""
    multiprocessors = 1 if INTERPRET.value else torch.cuda.get_device_properties(device).multi_processor_count
    parts = max(1, WAVES * multiprocessors // triton.cdiv(tokens, 128))
    return max(PART_COLUMNS, triton.cdiv(vocab, parts * 256) * 256)


def chunk_tokens(h_TD: Tensor) -> int:
    """Return how many tokens' gradients are summed at a time."""
    tokens = CHUNK_BYTES // (LEAST_COLUMNS * h_TD.element_size())
    if h_TD.dtype != torch.float32:
        tokens = min(tokens, SUM_ELEMENTS // h_TD.shape[1])
    return max(1, tokens)


def statistics(h_TD: Tensor, W_VD: Tensor, scale: float, target_T: Tensor) -> Results:
    """Return what `columns.results_of` does. Two launches for each FORWARD_TOKENS."""
    tokens, vocab = h_TD.shape[0], W_VD.shape[0]
    results = Results(*(torch.empty(tokens, device=h_TD.device) for _ in Results._fields))
    config = chosen(CONFIGS["totals", h_TD.element_size()], h_TD.device)
    for start in range(0, tokens, FORWARD_TOKENS):
        chunk = slice(start, start + FORWARD_TOKENS)
        operands, size = _operands(h_TD[chunk], W_VD, scale, target_T[chunk]), len(h_TD[chunk])
        columns = _part_columns(size, vocab, h_TD.device)
        parts = triton.cdiv(vocab, columns)
        totals_P3T = torch.empty(parts, 3, size, device=h_TD.device)
        walked_T = torch.empty(size, device=h_TD.device)
        _totals[(triton.cdiv(size, config.sizes["M"]) * parts,)](
            **operands, totals=totals_P3T, target_logit=walked_T, part_columns=columns, num_parts=parts,
            **config.options,
        )  # fmt: skip
        outputs = {f"out_{name.removesuffix('_T')}": x[chunk] for name, x in results._asdict().items()}
        del operands["V"]
        _results[(triton.cdiv(size, FEW_TOKENS),)](
            **operands, totals=totals_P3T, num_parts=parts, **outputs,
            walked=walked_T, M=FEW_TOKENS, K=256, PP=triton.next_power_of_2(parts),
        )  # fmt: skip
    return results


def factors(results: Results, gradients: tuple[Tensor | None, ...], scale: float) -> tuple[Tensor, Tensor]:
    """Return what `columns.factors` does, from one launch."""
    logprob, _, entropy, top, log_sum = results
    tokens = len(logprob)
    out_5T = torch.empty(5, tokens, device=logprob.device)
    strides = [0 if g is None else g.stride(0) for g in gradients]
    if tokens:
        _factors[(triton.cdiv(tokens, 256),)](
            logprob, entropy, top, log_sum, *gradients, out_5T, tokens, *strides, scale, N=256
        )
    return out_5T[:4], out_5T[4]


def write_gradients(
    h_TD: Tensor,
    W_VD: Tensor,
    scale: float,
    per_token_4T: Tensor,
    target_T: Tensor,
    target_dz_T: Tensor,
    chunks: Sequence[slice],
    dh_TD: Tensor | None,
    dW_VD: Tensor | None,
) -> None:
    """Write the rows of dh_TD in `chunks`, and dW_VD summed over the tokens in `chunks`. Pass None for one not wanted.

    One walk over the vocabulary. dh_TD needs a single chunk.
    """
    assert dh_TD is None or len(chunks) == 1, "sums of dh are held for one chunk"
    vocab, hidden = W_VD.shape
    tokens = max(len(h_TD[chunk]) for chunk in chunks)
    columns = max(LEAST_COLUMNS, CHUNK_BYTES // (max(1, tokens) * h_TD.element_size()))
    if len(chunks) > 1:
        columns = min(columns, max(LEAST_COLUMNS, SUM_ELEMENTS // hidden))
    columns = min(columns // LEAST_COLUMNS * LEAST_COLUMNS, vocab)
    store = h_TD.new_empty(tokens * columns)
    operands = [_chunk_operands(h_TD, W_VD, scale, per_token_4T, target_T, target_dz_T, c) for c in chunks]
    sum_TD = None if dh_TD is None else torch.zeros_like(h_TD[chunks[0]], dtype=torch.float32)
    for first in range(0, vocab, columns):
        W_CD = W_VD[first : first + columns]
        sum_CD = None
        if dW_VD is not None and len(chunks) > 1:
            sum_CD = torch.zeros(W_CD.shape, dtype=torch.float32, device=W_CD.device)
        for of_chunk in operands:
            h, dz_TC = of_chunk["h"], store[: len(of_chunk["h"]) * len(W_CD)].view(-1, len(W_CD))
            _write_dz(of_chunk, dz_TC, first)
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


def _chunk_operands(h_TD, W_VD, scale, per_token_4T, target_T, target_dz_T, chunk: slice) -> dict:
    per_token = {"per_token": per_token_4T[:, chunk], "target_dz": target_dz_T[chunk]}
    per_token["per_token_row"] = per_token_4T.stride(0)
    return _operands(h_TD[chunk], W_VD, scale, target_T[chunk]) | per_token


def _write_dz(operands: dict, dz_TC: Tensor, first: int) -> None:
    tokens, columns = dz_TC.shape
    config = chosen(CONFIGS["gradient", dz_TC.element_size()], dz_TC.device)
    if tokens:
        _gradient[(triton.cdiv(tokens, config.sizes["M"]) * triton.cdiv(columns, config.sizes["N"]),)](
            **operands, dz=dz_TC, first=first, columns=columns, **config.options
        )


def _add_product(sum_RD: Tensor, a_RC: Tensor, b_CD: Tensor) -> None:
    """Add a b to the float32 sum, for a and b of any dtype."""
    if sum_RD.dtype == a_RC.dtype:
        sum_RD.addmm_(a_RC, b_CD)
    elif sum_RD.is_cuda:
        torch.addmm(sum_RD, a_RC, b_CD, out_dtype=sum_RD.dtype, out=sum_RD)
    else:
        sum_RD.addmm_(a_RC.to(sum_RD.dtype), b_CD.to(sum_RD.dtype))
