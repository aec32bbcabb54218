"""Packed causal attention on CUDA, in Triton: forward and backward over cu_seqlens, with ALiBi and grouped heads.

Flash attention (Dao et al. 2022; Dao 2023) with the softmax in base 2. Each tile of a result is written by one program,
so the same input gives the same bits. The grid is sized for the longest sequence: programs after the end of a shorter
one return at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common.triton import Config, chosen, dot

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _offsets(first, end, stride, N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):
    """Offsets [N, KP] of one head's rows from `first` on, and which of them are before row `end` and the head size."""
    row, column = first + tl.arange(0, N), tl.arange(0, KP)
    return row.to(tl.int64)[:, None] * stride + column[None, :], (row < end)[:, None] & (column < K)[None, :]


@triton.jit
def _rows(x, first, end, stride, N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):
    where, inside = _offsets(first, end, stride, N, K, KP)
    return tl.load(x + where, mask=inside, other=0.0)


@triton.jit
def _write(x, tile, first, end, stride, N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):
    where, inside = _offsets(first, end, stride, N, K, KP)
    tl.store(x + where, tile.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _scores(q, k, i, j, scale2, slope2, window, ALIBI: tl.constexpr, BORDER: tl.constexpr, WINDOW: tl.constexpr):
    """[M, N] scores, times log2(e), of queries at columns i [M] and keys at columns j [N] of the pack.

    BORDER: some keys may be after their query, so compare positions. Keys after the sequence are after all queries.
    WINDOW: a query sees `window` keys, its own included.
    """
    s = dot(q, tl.trans(k)) * scale2
    ahead = j[None, :] - i[:, None]
    if ALIBI:
        s += slope2 * ahead.to(tl.float32)
    if BORDER:
        s = tl.where(ahead <= 0, s, float("-inf"))
    if WINDOW:
        s = tl.where(ahead > -window, s, float("-inf"))
    return s


@triton.jit
def _forward_tile(
    acc, top, total, q, k, v, k_stride, v_stride, i, j0, end, scale2, slope2, window,
    N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, ALIBI: tl.constexpr, BORDER: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Return the running sums after one more tile of keys."""
    k_NK = _rows(k, j0, end, k_stride, N, K, KP)
    v_NK = _rows(v, j0, end, v_stride, N, K, KP)
    s = _scores(q, k_NK, i, j0 + tl.arange(0, N), scale2, slope2, window, ALIBI, BORDER, WINDOW)
    new_top = tl.maximum(top, tl.max(s, 1))
    base = tl.where(new_top > float("-inf"), new_top, 0.0) if WINDOW else new_top  # a query may see none of these keys
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(top - base)
    acc = acc * shrink[:, None] + dot(p.to(v_NK.dtype), v_NK)
    return acc, new_top, total * shrink + tl.sum(p, 1)


@triton.jit
def _forward(
    q, k, v, out, lse, cu_seqlens, slopes, scale2, window, q_stride, k_stride, v_stride, q_head, k_head, v_head,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, ALIBI: tl.constexpr,
    WINDOW: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    s, h = tl.program_id(0) // H, tl.program_id(0) % H
    start, end = tl.load(cu_seqlens + s), tl.load(cu_seqlens + s + 1)
    first = start + (tl.num_programs(1) - 1 - tl.program_id(1)) * M  # the last queries first: they take the longest
    if first < end:
        k, v = k + h // (H // G) * k_head, v + h // (H // G) * v_head
        slope2 = tl.load(slopes + h) * LOG2E if ALIBI else 0.0
        i = first + tl.arange(0, M)
        q_MK = _rows(q + h * q_head, first, end, q_stride, M, K, KP)
        acc = tl.zeros([M, KP], tl.float32)
        top = tl.full([M], float("-inf"), tl.float32)
        total = tl.zeros([M], tl.float32)
        # Every query sees the whole tiles before the first query. From there on, compare positions.
        border = start + (first - start) // N * N
        nearest = start
        if WINDOW:
            nearest = start + tl.maximum(first - window + 1 - start, 0) // N * N
        for j0 in range(nearest, border, N):
            acc, top, total = _forward_tile(
                acc, top, total, q_MK, k, v, k_stride, v_stride, i, j0, end, scale2, slope2, window,
                N, K, KP, ALIBI, False, WINDOW,
            )  # fmt: skip
        for j0 in range(border, tl.minimum(end, first + M), N):
            acc, top, total = _forward_tile(
                acc, top, total, q_MK, k, v, k_stride, v_stride, i, j0, end, scale2, slope2, window,
                N, K, KP, ALIBI, True, WINDOW,
            )  # fmt: skip
        _write(out + h * K, acc / total[:, None], first, end, H * K, M, K, KP)
        tl.store(lse + i.to(tl.int64) * H + h, top + tl.log2(total), mask=i < end)


@triton.jit
def _dq_tile(
    dq, q, do, lse, delta, k, v, k_stride, v_stride, i, j0, end, scale2, slope2, window,
    N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, ALIBI: tl.constexpr, BORDER: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    k_NK = _rows(k, j0, end, k_stride, N, K, KP)
    v_NK = _rows(v, j0, end, v_stride, N, K, KP)
    s = _scores(q, k_NK, i, j0 + tl.arange(0, N), scale2, slope2, window, ALIBI, BORDER, WINDOW)
    p = tl.exp2(s - lse[:, None])
    ds = p * (dot(do, tl.trans(v_NK)) - delta[:, None])
    return dq + dot(ds.to(k_NK.dtype), k_NK)


@triton.jit
def _backward_q(
    q, k, v, out, grad, dq, lse, delta, cu_seqlens, slopes, scale, scale2, window,
    q_stride, k_stride, v_stride, g_stride, q_head, k_head, v_head, g_head,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, ALIBI: tl.constexpr,
    WINDOW: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write dq and delta, the dot product of each output with its gradient, which `_backward_kv` reads."""
    s, h = tl.program_id(0) // H, tl.program_id(0) % H
    start, end = tl.load(cu_seqlens + s), tl.load(cu_seqlens + s + 1)
    first = start + (tl.num_programs(1) - 1 - tl.program_id(1)) * M
    if first < end:
        k, v = k + h // (H // G) * k_head, v + h // (H // G) * v_head
        slope2 = tl.load(slopes + h) * LOG2E if ALIBI else 0.0
        i = first + tl.arange(0, M)
        q_MK = _rows(q + h * q_head, first, end, q_stride, M, K, KP)
        do_MK = _rows(grad + h * g_head, first, end, g_stride, M, K, KP)
        o_MK = _rows(out + h * K, first, end, H * K, M, K, KP)
        delta_M = tl.sum(o_MK.to(tl.float32) * do_MK.to(tl.float32), 1)
        at = i.to(tl.int64) * H + h
        tl.store(delta + at, delta_M, mask=i < end)
        lse_M = tl.load(lse + at, mask=i < end, other=float("inf"))
        dq_MK = tl.zeros([M, KP], tl.float32)
        border = start + (first - start) // N * N
        nearest = start
        if WINDOW:
            nearest = start + tl.maximum(first - window + 1 - start, 0) // N * N
        for j0 in range(nearest, border, N):
            dq_MK = _dq_tile(
                dq_MK, q_MK, do_MK, lse_M, delta_M, k, v, k_stride, v_stride, i, j0, end, scale2, slope2, window,
                N, K, KP, ALIBI, False, WINDOW,
            )  # fmt: skip
        for j0 in range(border, tl.minimum(end, first + M), N):
            dq_MK = _dq_tile(
                dq_MK, q_MK, do_MK, lse_M, delta_M, k, v, k_stride, v_stride, i, j0, end, scale2, slope2, window,
                N, K, KP, ALIBI, True, WINDOW,
            )  # fmt: skip
        _write(dq + h * K, dq_MK * scale, first, end, H * K, M, K, KP)


@triton.jit
def _dkv_tile(
    dk, dv, k, v, q, grad, lse, delta, q_stride, g_stride, j, i0, end, scale2, slope2, window, H: tl.constexpr,
    M: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, ALIBI: tl.constexpr, BORDER: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    i = i0 + tl.arange(0, M)
    q_MK = _rows(q, i0, end, q_stride, M, K, KP)
    do_MK = _rows(grad, i0, end, g_stride, M, K, KP)
    lse_M = tl.load(lse + i.to(tl.int64) * H, mask=i < end, other=float("inf"))  # after the end: weight 2^-inf = 0
    delta_M = tl.load(delta + i.to(tl.int64) * H, mask=i < end, other=0.0)
    s = _scores(q_MK, k, i, j, scale2, slope2, window, ALIBI, BORDER, WINDOW)
    p = tl.exp2(s - lse_M[:, None])
    ds = p * (dot(do_MK, tl.trans(v)) - delta_M[:, None])
    dv += dot(tl.trans(p.to(do_MK.dtype)), do_MK)
    dk += dot(tl.trans(ds.to(q_MK.dtype)), q_MK)
    return dk, dv


@triton.jit
def _backward_kv(
    q, k, v, grad, dk, dv, lse, delta, cu_seqlens, slopes, scale, scale2, window,
    q_stride, k_stride, v_stride, g_stride, q_head, k_head, v_head, g_head,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, ALIBI: tl.constexpr,
    WINDOW: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of one tile of keys: loop over the query heads that share it and the queries that see it."""
    s, g = tl.program_id(0) // G, tl.program_id(0) % G
    start, end = tl.load(cu_seqlens + s), tl.load(cu_seqlens + s + 1)
    first = start + tl.program_id(1) * N
    if first < end:
        j = first + tl.arange(0, N)
        k_NK = _rows(k + g * k_head, first, end, k_stride, N, K, KP)
        v_NK = _rows(v + g * v_head, first, end, v_stride, N, K, KP)
        dk_NK = tl.zeros([N, KP], tl.float32)
        dv_NK = tl.zeros([N, KP], tl.float32)
        nearest = start + (first - start) // M * M
        border = tl.minimum(end, start + tl.cdiv(first - start + N, M) * M)  # queries from there on see the whole tile
        last = end
        if WINDOW:
            last = tl.minimum(end, first + N - 1 + window)  # the last query that sees one of these keys, plus 1
        for h in range(g * (H // G), (g + 1) * (H // G)):
            slope2 = tl.load(slopes + h) * LOG2E if ALIBI else 0.0
            q_h, grad_h = q + h * q_head, grad + h * g_head
            for i0 in range(nearest, border, M):
                dk_NK, dv_NK = _dkv_tile(
                    dk_NK, dv_NK, k_NK, v_NK, q_h, grad_h, lse + h, delta + h, q_stride, g_stride, j, i0, end,
                    scale2, slope2, window, H, M, K, KP, ALIBI, True, WINDOW,
                )  # fmt: skip
            for i0 in range(border, last, M):
                dk_NK, dv_NK = _dkv_tile(
                    dk_NK, dv_NK, k_NK, v_NK, q_h, grad_h, lse + h, delta + h, q_stride, g_stride, j, i0, end,
                    scale2, slope2, window, H, M, K, KP, ALIBI, False, WINDOW,
                )  # fmt: skip
        _write(dk + g * K, dk_NK * scale, first, end, G * K, N, K, KP)
        _write(dv + g * K, dv_NK, first, end, G * K, N, K, KP)


def _config(M: int, N: int, warps: int, stages: int, shared: int) -> Config:
    return Config({"M": M, "N": N}, warps, stages, shared)


# For each kernel, size of an element in bytes and padded head size: the first that fits the device is used. Float32
# runs on the CUDA cores, not the tensor cores, in small tiles.
_SMALL = _config(16, 32, 1, 1, 80)
CONFIGS = {
    ("forward", 2, 64): [_config(128, 64, 4, 3, 48), _config(128, 128, 8, 3, 96), _SMALL],
    ("forward", 2, 128): [_config(128, 64, 8, 3, 96), _config(64, 64, 4, 2, 56), _SMALL],
    ("forward", 2, 256): [_config(128, 64, 8, 2, 144), _config(64, 64, 8, 1, 72), _SMALL],
    ("backward_q", 2, 64): [_config(64, 64, 4, 2, 32), _config(128, 64, 8, 2, 48), _SMALL],
    ("backward_q", 2, 128): [_config(64, 64, 8, 2, 72), _config(64, 32, 4, 2, 52), _SMALL],
    ("backward_q", 2, 256): [_config(32, 64, 8, 1, 96), _config(32, 32, 4, 1, 64), _SMALL],
    ("backward_kv", 2, 64): [_config(64, 64, 4, 2, 41), _config(64, 128, 8, 2, 64), _SMALL],
    ("backward_kv", 2, 128): [_config(64, 64, 8, 2, 73), _config(64, 32, 4, 2, 53), _SMALL],
    ("backward_kv", 2, 256): [_config(32, 64, 8, 1, 100), _config(32, 32, 4, 1, 66), _SMALL],
    ("forward", 4, 64): [_config(64, 32, 8, 2, 41), _config(32, 32, 4, 2, 29), _SMALL],
    ("forward", 4, 128): [_config(32, 32, 4, 2, 52), _config(64, 32, 8, 2, 72), _SMALL],
    ("forward", 4, 256): [_config(32, 32, 8, 1, 96), _SMALL],
    ("backward_q", 4, 64): [_config(32, 32, 8, 2, 36), _SMALL],
    ("backward_q", 4, 128): [_config(32, 32, 8, 2, 68), _SMALL],
    ("backward_q", 4, 256): [_config(16, 16, 8, 1, 65), _SMALL],
    ("backward_kv", 4, 64): [_config(32, 32, 8, 2, 41), _config(16, 32, 4, 1, 28), _SMALL],
    ("backward_kv", 4, 128): [_config(16, 32, 4, 1, 52), _SMALL],
    ("backward_kv", 4, 256): [_config(16, 16, 8, 1, 67), _SMALL],
}


def _chosen(kernel: str, q: Tensor) -> Config:
    padded = min(max(64, triton.next_power_of_2(q.shape[2])), 256)
    return chosen(CONFIGS[kernel, q.element_size(), padded], q.device)


def attention_triton(
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
    return _Attention.apply(q_THK, k_TGK, v_TGK, cu_seqlens, max(lengths, default=0), slopes_H, scale, window)


def _head_size_last(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_seqlens, max_len, slopes_H, scale, window):
        q, k, v = (_head_size_last(x) for x in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse_TH = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, lse_TH, cu_seqlens, slopes_H)
        ctx.max_len, ctx.scale, ctx.window = max_len, scale, window
        if max_len:
            num_sequences, heads = cu_seqlens.shape[0] - 1, q.shape[1]
            config = _chosen("forward", q)
            _forward[(num_sequences * heads, triton.cdiv(max_len, config.sizes["M"]))](
                q, k, v, out, lse_TH, cu_seqlens, lse_TH if slopes_H is None else slopes_H, scale * LOG2E.value,
                window or 0, *(x.stride(d) for d in (0, 1) for x in (q, k, v)),
                **_sizes(q, k, slopes_H, window), **config.options,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse_TH, cu_seqlens, slopes_H = ctx.saved_tensors
        grad, scale, max_len = _head_size_last(grad), ctx.scale, ctx.max_len
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        if max_len:
            delta_TH = torch.empty_like(lse_TH)
            slopes = lse_TH if slopes_H is None else slopes_H
            constants = (lse_TH, delta_TH, cu_seqlens, slopes, scale, scale * LOG2E.value, ctx.window or 0)
            strides = [x.stride(d) for d in (0, 1) for x in (q, k, v, grad)]
            num_sequences, sizes = cu_seqlens.shape[0] - 1, _sizes(q, k, slopes_H, ctx.window)
            config = _chosen("backward_q", q)
            _backward_q[(num_sequences * q.shape[1], triton.cdiv(max_len, config.sizes["M"]))](
                q, k, v, out, grad, dq, *constants, *strides, **sizes, **config.options
            )
            config = _chosen("backward_kv", q)
            _backward_kv[(num_sequences * k.shape[1], triton.cdiv(max_len, config.sizes["N"]))](
                q, k, v, grad, dk, dv, *constants, *strides, **sizes, **config.options
            )
        return dq, dk, dv, None, None, None, None, None


def _sizes(q: Tensor, k: Tensor, slopes_H: Tensor | None, window: int | None) -> dict:
    head_size = q.shape[2]
    return {
        "H": q.shape[1],
        "G": k.shape[1],
        "K": head_size,
        "KP": max(16, triton.next_power_of_2(head_size)),
        "ALIBI": slopes_H is not None,
        "WINDOW": window is not None,
    }
