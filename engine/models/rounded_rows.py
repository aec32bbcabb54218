"""Give layers a number of rows that repeats, in bfloat16 on a CPU.

There PyTorch's products are oneDNN's, which compiles one for each number of rows that it meets: about 8 ms and a
megabyte for each of a block's products, forward and backward. Packs have a different number of tokens every time. With
rows of zeros up to a multiple of ROWS the compiled products, and the sizes of all buffers, come again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.models.attend import Attend, AttentionOptions, causal_attend

ROWS = 64


def rows_to_add(h_TD: Tensor) -> int:
    """Return how many rows of zeros to add; 0 on a GPU, in float32, and where a few rows have their own kernels."""
    if h_TD.dtype != torch.bfloat16 or h_TD.device.type != "cpu" or h_TD.shape[0] < ROWS:
        return 0
    return -h_TD.shape[0] % ROWS


def add_rows(h_TD: Tensor, batch: PackedBatch, attend: Attend | None, count: int) -> tuple[Tensor, Tensor, Attend]:
    """Return h_TD and the positions with `count` more rows, and attention that leaves those alone."""
    tokens = h_TD.shape[0]
    h_RD = torch.cat([h_TD, h_TD.new_zeros(count, h_TD.shape[1])])
    position_R = torch.cat([batch.positions_T, batch.positions_T.new_zeros(count)])
    if attend is None:  # they are one more sequence of the pack
        return h_RD, position_R, causal_attend(_longer(batch, count))

    def attend_rows(index: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        o_THK = attend(index, q[:tokens], k[:tokens], v[:tokens], options)
        return torch.cat([o_THK, o_THK.new_zeros(count, *o_THK.shape[1:])])

    return h_RD, position_R, attend_rows


def _longer(batch: PackedBatch, count: int) -> PackedBatch:
    zeros = batch.tokens_T.new_zeros(count)
    bounds = torch.cat([batch.cu_seqlens, batch.cu_seqlens[-1:] + count])
    position = torch.arange(count, device=zeros.device)
    return PackedBatch(
        torch.cat([batch.tokens_T, zeros]), torch.cat([batch.positions_T, position]), bounds, (*batch.lengths, count)
    )
