"""attention_decode on CUDA, in Triton: split keys among programs (Dao et al. 2023), merge the parts by logsumexp.

A part is the result for one chunk of a row's positions. Chunks have a fixed length. A chunk that the rows of a group
share is read once for a tile of them, by a kernel of its own. A row is split and summed in the same way whatever else
is in the batch. The host never waits for the device: the grid is sized for the longest row, and programs without work
return at once. The last program of a row to finish, found by a count in memory, merges the row's parts, in the order of
positions whichever program that is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common.triton import dot, rounded

CHUNK = 256  # positions per program
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _part(
    q_MK, end, slope2, k, v, table, begin, stop, scale2, window,
    k_page, k_slot, k_dim, v_page, v_slot,
    K: tl.constexpr, KP: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    ALIBI: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Attend with M queries over positions begin to stop-1: the sum of values, the maximum and the sum of weights."""
    d = tl.arange(0, KP)
    acc = tl.zeros([M, KP], tl.float32)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    for j0 in range(begin, stop, N):
        j = j0 + tl.arange(0, N)
        seen = j < stop
        page = tl.load(table + j // PAGE, mask=seen, other=0).to(tl.int64)
        k_KN = tl.load(
            k + (page * k_page + (j % PAGE) * k_slot)[None, :] + d[:, None] * k_dim,
            mask=seen[None, :] & (d < K)[:, None], other=0.0,
        )  # fmt: skip
        v_NK = tl.load(
            v + (page * v_page + (j % PAGE) * v_slot)[:, None] + d[None, :],
            mask=seen[:, None] & (d < K)[None, :], other=0.0,
        )  # fmt: skip
        s = dot(q_MK, k_KN) * scale2
        if ALIBI:
            # Positions relative to the row's last keep the bias small where the weights are large.
            s += slope2[:, None] * (j[None, :] - end[:, None] + 1).to(tl.float32)
        s = tl.where(seen[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        base = new_top
        if WINDOW:
            s = tl.where(j[None, :] >= end[:, None] - window, s, float("-inf"))
            new_top = tl.maximum(top, tl.max(s, 1))
            base = tl.where(new_top > float("-inf"), new_top, 0.0)  # a row may see none of these positions
        p = tl.exp2(s - base[:, None])
        shrink = tl.exp2(top - base)
        acc = acc * shrink[:, None] + dot(p.to(v_NK.dtype), v_NK)
        total = total * shrink + tl.sum(p, 1)
        top = new_top
    return acc, top, total


@triton.jit
def _merged(acc, top, total, part, tops, totals, at, d, exists, KP: tl.constexpr):
    """Merge a part in memory into the sums, if it exists: without it they stay as they are, to the bit."""
    its_top = tl.load(tops + at, mask=exists, other=float("-inf"), cache_modifier=".cg")
    its_total = tl.load(totals + at, mask=exists, other=0.0, cache_modifier=".cg")
    its_acc = tl.load(part + at[:, None] * KP + d[None, :], mask=exists[:, None], other=0.0, cache_modifier=".cg")
    new_top = tl.maximum(top, its_top)
    base = tl.where(new_top > float("-inf"), new_top, 0.0)
    shrink, weight = tl.exp2(top - base), tl.exp2(its_top - base)
    return acc * shrink[:, None] + its_acc * weight[:, None], new_top, total * shrink + its_total * weight


@triton.jit
def _chunk(
    q, k, v, table, length, slopes, cu_groups, shared, group_of, part, tops, totals, tickets, out,
    scale2, window, rows, width, chunks,
    q_row, q_head, k_page, k_head, k_slot, k_dim, v_page, v_head, v_slot,
    H: tl.constexpr, J: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, PAGE: tl.constexpr, CHUNK: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, ALIBI: tl.constexpr, GROUPS: tl.constexpr, SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """Attend over one chunk of positions with the J query heads of one key/value head, for one row or a tile of rows.

    SHARED: a tile of rows over positions that their group shares. Otherwise a row over its own positions, after a
    launch for the shared ones (GROUPS); the row's last program merges its parts and writes the result. Parts are
    [2, rows, H, chunks, ...]: first those of shared positions, then those of the rows' own positions.
    """
    first, g, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin, stop = chunk * CHUNK, (chunk + 1) * CHUNK
    last, own_chunk, last_chunk, num_shared = first + 1, 0, 0, 0
    if SHARED:
        group = tl.load(group_of + first)
        # The program of a tile's first row works for the whole tile, those of its other rows do nothing.
        works = (first - tl.load(cu_groups + group)) % (M // J) == 0
        last = tl.minimum(tl.minimum(tl.load(cu_groups + group + 1), rows), first + M // J)
        stop = tl.minimum(stop, tl.load(shared + group))
        works = works & (begin < stop)
    else:
        its_length = tl.load(length + first)
        if GROUPS:
            num_shared = tl.load(shared + tl.load(group_of + first))
        own = num_shared
        if WINDOW:  # in steps of N from position 0, so that a row is summed in the same way in any group
            own = tl.maximum(own, (its_length - window) // N * N)
        begin, stop = tl.maximum(begin, own), tl.minimum(stop, its_length)
        last_chunk = (its_length - 1) // CHUNK
        own_chunk = tl.minimum(own // CHUNK, last_chunk)  # where all positions are shared, one part is empty
        works = (own_chunk <= chunk) & (chunk <= last_chunk)
    if works:
        m, d = tl.arange(0, M), tl.arange(0, KP)
        row, head = first + m // J, g * J + m % J
        inside = row < last
        q_MK = tl.load(
            q + row.to(tl.int64)[:, None] * q_row + head[:, None] * q_head + d[None, :],
            mask=inside[:, None] & (d < K)[None, :], other=0.0,
        )  # fmt: skip
        end = tl.load(length + row, mask=inside, other=1)
        slope2 = tl.zeros([M], tl.float32)
        if ALIBI:
            slope2 = tl.load(slopes + head, mask=inside, other=0.0) * LOG2E
        acc, top, total = _part(
            q_MK, end, slope2, k + g * k_head, v + g * v_head, table + first.to(tl.int64) * width, begin, stop,
            scale2, window, k_page, k_slot, k_dim, v_page, v_slot, K, KP, PAGE, M, N, ALIBI, WINDOW,
        )  # fmt: skip
        # Where the row's parts begin: all shared parts, then all own ones.
        shared_at = (row.to(tl.int64) * H + head) * chunks
        own_at = ((rows + row).to(tl.int64) * H + head) * chunks
        at = (shared_at if SHARED else own_at) + chunk
        tl.store(tops + at, top, mask=inside)
        tl.store(totals + at, total, mask=inside)
        tl.store(part + at[:, None] * KP + d[None, :], acc, mask=inside[:, None])
        if not SHARED:
            tl.debug_barrier()  # all threads have written their share of the part before one of them counts it
            ticket = tickets + first * (H // J) + g
            if tl.atomic_add(ticket, 1, sem="acq_rel") == last_chunk - own_chunk:
                tl.store(ticket, 0)  # for the next layer
                top = tl.full([M], float("-inf"), tl.float32)
                total = tl.zeros([M], tl.float32)
                acc = tl.zeros([M, KP], tl.float32)
                for i in range(0 if GROUPS else own_chunk, last_chunk + 1):
                    if GROUPS:
                        exists = inside & (i * CHUNK < num_shared)
                        acc, top, total = _merged(acc, top, total, part, tops, totals, shared_at + i, d, exists, KP)
                    exists = inside & (i >= own_chunk)
                    acc, top, total = _merged(acc, top, total, part, tops, totals, own_at + i, d, exists, KP)
                result = acc / tl.where(inside, total, 1.0)[:, None]
                where = out + (row.to(tl.int64) * H + head)[:, None] * K + d[None, :]
                tl.store(where, rounded(result, out.dtype.element_ty), mask=inside[:, None] & (d < K)[None, :])


class Prepared(NamedTuple):
    """What all layers of a step share: the group of each row, int32 [rows] (None without groups), and the counts of
    finished programs, int32 [rows, G], 0 before and after each layer."""

    group_of_S: Tensor | None
    tickets: Tensor


def prepare_triton(rows: int, kv_heads: int, device: torch.device, cu_groups: Tensor | None) -> Prepared:
    """See `kernels.attention_decode.prepare`."""
    tickets = torch.zeros(rows, kv_heads, dtype=torch.int32, device=device)
    if cu_groups is None:
        return Prepared(None, tickets)
    row_S = torch.arange(rows, dtype=torch.int32, device=device)
    return Prepared(torch.searchsorted(cu_groups, row_S, right=True, out_int32=True) - 1, tickets)


def attention_decode_triton(
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
    prepared: Prepared | None = None,
) -> Tensor:
    """See `kernels.attention_decode.attention_decode`."""
    rows, heads, head_size = q_SHK.shape
    out_SHK = q_SHK.new_empty(q_SHK.shape)
    if not rows:
        return out_SHK
    kv_heads, page_size = k_PGNK.shape[1:3]
    per_kv, padded = heads // kv_heads, max(16, triton.next_power_of_2(head_size))
    q_SHK = q_SHK if q_SHK.stride(2) == 1 else q_SHK.contiguous()
    assert v_PGNK.stride(3) == 1, "the values of a position must be contiguous"
    table_SB, length_S = table_SB.contiguous(), length_S.contiguous()
    if cu_groups is not None:
        cu_groups, shared_R = cu_groups.contiguous(), shared_R.contiguous()
    group_of_S, tickets = prepared or prepare_triton(rows, kv_heads, q_SHK.device, cu_groups)
    chunks = triton.cdiv(table_SB.shape[1] * page_size, CHUNK)
    part = torch.empty(2, rows, heads, chunks, padded, dtype=torch.float32, device=q_SHK.device)
    top, total = torch.empty(2, *part.shape[:-1], dtype=torch.float32, device=q_SHK.device)
    scale = head_size**-0.5 if scale is None else scale
    # M for eight rows that share a prompt, or for one row.
    tiles = {True: triton.next_power_of_2(8 * per_kv), False: triton.next_power_of_2(per_kv)}
    for shared in (True, False) if cu_groups is not None else (False,):
        _chunk[(rows, kv_heads, chunks)](
            q_SHK, k_PGNK, v_PGNK, table_SB, length_S, slopes_H, cu_groups, shared_R, group_of_S, part, top, total,
            tickets, out_SHK, scale * LOG2E.value, window or 0, rows, table_SB.shape[1], chunks,
            *q_SHK.stride()[:2], *k_PGNK.stride(), *v_PGNK.stride()[:3],
            H=heads, J=per_kv, K=head_size, KP=padded, PAGE=page_size, CHUNK=CHUNK, M=max(16, tiles[shared]), N=32,
            ALIBI=slopes_H is not None, GROUPS=cu_groups is not None, SHARED=shared,
            WINDOW=window is not None,
        )  # fmt: skip
    return out_SHK
