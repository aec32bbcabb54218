"""attention_decode on CUDA, in Triton: split keys among programs (Dao et al. 2023), merge the parts by logsumexp.

A part is the result for one chunk of a row's positions. Chunks have a fixed length. A chunk that the rows of a group
share is read once for a tile of them. A row is split and summed in the same way whatever else is in the batch. The host
never waits for the device: the grid is sized for the longest row, and programs without work return at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common.triton import dot

CHUNK = 256  # positions per program
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _chunk(
    q, k, v, table, length, slopes, cu_groups, shared, group_of, part, top_out, total_out,
    scale2, window, rows, width, chunks,
    q_row, q_head, k_page, k_head, k_slot, k_dim, v_page, v_head, v_slot,
    H: tl.constexpr, J: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, PAGE: tl.constexpr, CHUNK: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, ALIBI: tl.constexpr, GROUPS: tl.constexpr, SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """Attend over one chunk of positions with the J query heads of one key/value head, for one row or a tile of rows.

    SHARED: a tile of rows over positions that their group shares. Writes sums [2, rows, H, chunks, ...]: first those of
    shared positions, then those of the rows' own positions.
    """
    first, g, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin, stop = chunk * CHUNK, (chunk + 1) * CHUNK
    last = first + 1
    if SHARED:
        group = tl.load(group_of + first)
        # The program of a tile's first row works for the whole tile, those of its other rows do nothing.
        mine = (first - tl.load(cu_groups + group)) % (M // J) == 0
        last = tl.minimum(tl.minimum(tl.load(cu_groups + group + 1), rows), first + M // J)
        stop = tl.where(mine, tl.minimum(stop, tl.load(shared + group)), 0)
    else:
        stop = tl.minimum(stop, tl.load(length + first))
        if GROUPS:
            begin = tl.maximum(begin, tl.load(shared + tl.load(group_of + first)))
        if WINDOW:  # in steps of N from position 0, so that a row is summed in the same way in any group
            begin = tl.maximum(begin, (tl.load(length + first) - window) // N * N)
    if begin < stop:
        m = tl.arange(0, M)
        row, head = first + m // J, g * J + m % J
        inside = row < last
        d = tl.arange(0, KP)
        q_MK = tl.load(
            q + row.to(tl.int64)[:, None] * q_row + head[:, None] * q_head + d[None, :],
            mask=inside[:, None] & (d < K)[None, :], other=0.0,
        )  # fmt: skip
        end = tl.load(length + row, mask=inside, other=1)
        if ALIBI:
            slope2 = tl.load(slopes + head, mask=inside, other=0.0) * LOG2E
        acc = tl.zeros([M, KP], tl.float32)
        top = tl.full([M], float("-inf"), tl.float32)
        total = tl.zeros([M], tl.float32)
        for j0 in range(begin, stop, N):
            j = j0 + tl.arange(0, N)
            seen = j < stop
            page = tl.load(table + first.to(tl.int64) * width + j // PAGE, mask=seen, other=0).to(tl.int64)
            k_KN = tl.load(
                k + (page * k_page + g * k_head + (j % PAGE) * k_slot)[None, :] + d[:, None] * k_dim,
                mask=seen[None, :] & (d < K)[:, None], other=0.0,
            )  # fmt: skip
            v_NK = tl.load(
                v + (page * v_page + g * v_head + (j % PAGE) * v_slot)[:, None] + d[None, :],
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
        at = ((0 if SHARED else rows) + row).to(tl.int64) * H * chunks + head * chunks + chunk
        tl.store(top_out + at, top, mask=inside)
        tl.store(total_out + at, total, mask=inside)
        tl.store(part + at[:, None] * KP + d[None, :], acc, mask=inside[:, None])


@triton.jit
def _merge(
    part, top_in, total_in, out, rows, chunks,
    H: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one head of one row, in the order of positions. Parts without a maximum were never written."""
    row_head, d = tl.program_id(0).to(tl.int64), tl.arange(0, KP)
    acc = tl.zeros([KP], tl.float32)
    top, total = float("-inf"), 0.0
    for i in range(chunks):
        for kind in tl.static_range(0 if GROUPS else 1, 2):
            at = (kind * rows * H + row_head) * chunks + i
            its_top = tl.load(top_in + at)
            if its_top > float("-inf"):
                new_top = tl.maximum(top, its_top)
                shrink, weight = tl.exp2(top - new_top), tl.exp2(its_top - new_top)
                acc = acc * shrink + tl.load(part + at * KP + d) * weight
                total = total * shrink + tl.load(total_in + at) * weight
                top = new_top
    tl.store(out + row_head * K + d, (acc / total).to(out.dtype.element_ty), mask=d < K)


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
    group_of_S = None
    if cu_groups is not None:
        cu_groups, shared_R = cu_groups.contiguous(), shared_R.contiguous()
        row_S = torch.arange(rows, dtype=torch.int32, device=q_SHK.device)
        group_of_S = torch.searchsorted(cu_groups, row_S, right=True).to(torch.int32) - 1
    chunks = triton.cdiv(table_SB.shape[1] * page_size, CHUNK)
    part = torch.empty(2, rows, heads, chunks, padded, dtype=torch.float32, device=q_SHK.device)
    top = torch.full((2, rows, heads, chunks), -torch.inf, device=q_SHK.device)
    total = torch.empty_like(top)
    scale = head_size**-0.5 if scale is None else scale
    # M for eight rows that share a prompt, or for one row.
    tiles = {True: triton.next_power_of_2(8 * per_kv), False: triton.next_power_of_2(per_kv)}
    for shared in (True, False) if cu_groups is not None else (False,):
        _chunk[(rows, kv_heads, chunks)](
            q_SHK, k_PGNK, v_PGNK, table_SB, length_S, slopes_H, cu_groups, shared_R, group_of_S, part, top, total,
            scale * LOG2E.value, window or 0, rows, table_SB.shape[1], chunks,
            *q_SHK.stride()[:2], *k_PGNK.stride(), *v_PGNK.stride()[:3],
            H=heads, J=per_kv, K=head_size, KP=padded, PAGE=page_size, CHUNK=CHUNK, M=max(16, tiles[shared]), N=32,
            ALIBI=slopes_H is not None, GROUPS=cu_groups is not None, SHARED=shared,
            WINDOW=window is not None,
        )  # fmt: skip
    _merge[(rows * heads,)](
        part, top, total, out_SHK, rows, chunks, H=heads, K=head_size, KP=padded, GROUPS=cu_groups is not None
    )
    return out_SHK
