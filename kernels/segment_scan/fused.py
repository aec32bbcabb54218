"""segment_scan on CUDA, in Triton: each program looks ahead as far as a segment can reach.

Looking ahead at most max_len columns costs less than passing a carry between programs, and does not depend on their
order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common.triton import INTERPRET

BLOCK = 16 if INTERPRET.value else 1024


@triton.jit
def _then(x, d, next_x, next_d):
    """Compose the maps y -> x + d y of two neighbouring columns; the second is earlier in time."""
    return next_x + next_d * x, next_d * d


@triton.jit
def _scan(x, segment, out, T, blocks_ahead, decay: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    decay_B = tl.full([BLOCK], decay, x.dtype.element_ty)  # a constant: an argument would be cut to float32
    t = lane
    y = tl.zeros([BLOCK], x.dtype.element_ty)
    carry = tl.sum(y, 0)
    for n in range(blocks_ahead + 1):
        # Columns run backwards along the lanes, blocks backwards in time; the last block is this program's own.
        t = (tl.program_id(0) + blocks_ahead - n + 1) * BLOCK - 1 - lane
        x_B = tl.load(x + t, mask=t < T, other=0.0)
        own = tl.load(segment + t, mask=t < T, other=-1)
        following = tl.load(segment + t + 1, mask=t + 1 < T, other=-1)
        d_B = tl.where((own == following) & (t + 1 < T), decay_B, 0.0)
        y, reach = tl.associative_scan((x_B, d_B), 0, _then)
        y += reach * carry
        carry = tl.sum(tl.where(lane == BLOCK - 1, y, 0.0), 0)
    tl.store(out + t, y, mask=t < T)


def segment_scan_triton(x_T: Tensor, segment_T: Tensor, decay: float, max_len: int) -> Tensor:
    """See `kernels.segment_scan.segment_scan`."""
    x_T, segment_T = x_T.detach().contiguous(), segment_T.contiguous()
    out_T = torch.empty_like(x_T)
    blocks = triton.cdiv(x_T.shape[0], BLOCK)
    if blocks:
        _scan[(blocks,)](x_T, segment_T, out_T, x_T.shape[0], triton.cdiv(max_len, BLOCK), decay=decay, BLOCK=BLOCK)
    return out_T
