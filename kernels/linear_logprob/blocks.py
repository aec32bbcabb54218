"""The walk over the vocabulary with torch's products: one float32 tile of logits at a time, forward and backward.

Shapes: T tokens (or a chunk of them), D model, V vocabulary, B rows of a block of W. A tile is z_BT = W_BD h_TD^T, with
tokens along its rows, so that its sums run down the columns; this product is as fast as the other way round. The outer
loop runs over the vocabulary: with a loop over tokens, the memory traffic of dW would cost more than the products at
V / D = 60 and above.

Narrower inputs are converted to float32 block by block. On a CPU `bfloat16` is faster for them, where it can be built.
Codes are dequantised block by block, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from kernels.common.codes import Codes
from kernels.linear_logprob import cpu, eager
from kernels.linear_logprob.columns import Results, factors, results_of, row_dots, rows_of

__all__ = ["chunk_tokens", "factors", "statistics", "totals", "write_gradients"]

TILE_ELEMENTS = 1 << 21  # 8 MiB; with half of it the products are 5 % slower
EAGER_TILE_ELEMENTS = 1 << 20  # `eager` holds up to ten tiles
LARGEST_TILE_ELEMENTS = 1 << 22  # for so many tokens that a block would have too few rows for a fast product
MOST_ROWS = 1024  # of a block: what BLAS copies of more rows does not stay in the cache (AVX2: 1.1 to 1.4 times slower)
NARROW_BLOCK_ELEMENTS = 1 << 20  # of W, narrower or codes, converted to float32
NARROW_CHUNK_ELEMENTS = 2 << 20  # of h converted to float32, and as many of its gradient's sum
FORWARD_TOKENS = 4096  # tokens per walk over W


def chunk_tokens(h_TD: Tensor) -> int:
    """Return how many tokens' gradients are summed at a time."""
    wide = h_TD.dtype in (torch.float32, torch.float64)
    return max(1, h_TD.shape[0] if wide else NARROW_CHUNK_ELEMENTS // h_TD.shape[1])


def _passes(h_TD: Tensor) -> ModuleType | cpu.Passes:
    native = h_TD.device.type == "cpu" and h_TD.dtype == torch.float32 and cpu.library() is not None
    return cpu.Passes(cpu.library()) if native else eager


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _block_rows(W_VD: Tensor | Codes, tokens: int, passes: ModuleType | cpu.Passes) -> int:
    tokens = max(1, tokens)
    rows = EAGER_TILE_ELEMENTS // tokens
    if passes is not eager:
        rows = max(TILE_ELEMENTS // tokens, min(128, LARGEST_TILE_ELEMENTS // tokens))
    if isinstance(W_VD, Codes) or W_VD.dtype not in (torch.float32, torch.float64):
        rows = min(rows, NARROW_BLOCK_ELEMENTS // W_VD.shape[1])
    return max(1, min(rows, W_VD.shape[0], MOST_ROWS))


def _blocks(W_VD: Tensor | Codes, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the first id and W_BD in float32 for each block."""
    for first in range(0, W_VD.shape[0], rows):
        yield first, _wide(rows_of(W_VD, slice(first, first + rows)))


class _Tile:
    """Memory for one tile of logits, allocated once."""

    def __init__(self, like: Tensor, rows: int, tokens: int):
        self.store = like.new_empty(rows * tokens + cpu.SPARE)

    def logits(self, W_BD: Tensor, h_TD: Tensor) -> Tensor:
        """Return z_BT. The next call overwrites it."""
        shape = len(W_BD), len(h_TD)
        return torch.mm(W_BD, h_TD.T, out=self.store[: shape[0] * shape[1]].view(shape))


def statistics(h_TD: Tensor, W_VD: Tensor | Codes, scale: float, target_T: Tensor) -> Results:
    """Return what `columns.results_of` does."""
    return results_of(*totals(h_TD, W_VD, scale, target_T), row_dots(h_TD, W_VD, target_T), scale)


def totals(h_TD: Tensor, W_VD: Tensor | Codes, scale: float, target_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return totals_3T (see `eager`) and the targets' logits [T], float64 both."""
    rows_at_once = min(FORWARD_TOKENS, chunk_tokens(h_TD))
    parts = []
    for start in range(0, max(1, h_TD.shape[0]), rows_at_once):
        chunk = slice(start, start + rows_at_once)
        h = _wide(h_TD[chunk])
        passes = _passes(h)
        totals_P3T, target_logit_T = eager.empty_totals(passes.PARTS, len(h), h.device)
        rows = _block_rows(W_VD, len(h), passes)
        tile = _Tile(h, rows, len(h))
        for first, W_BD in _blocks(W_VD, rows):
            passes.statistics(tile.logits(W_BD, h), scale, totals_P3T, target_T[chunk], first, target_logit_T)
        parts.append((eager.merge(totals_P3T), target_logit_T))
    return torch.cat([merged for merged, _ in parts], 1), torch.cat([logit for _, logit in parts])


def write_gradients(
    h_TD: Tensor,
    W_VD: Tensor | Codes,
    scale: float,
    per_token_4T: Tensor,
    target_T: Tensor,
    target_dz_T: Tensor,
    chunks: Sequence[slice],
    dh_TD: Tensor | None,
    dW_VD: Tensor | None,
) -> None:
    """Write the rows of dh_TD in `chunks`, and dW_VD summed over the tokens in `chunks`. Pass None for one not wanted.

    One walk over the vocabulary; dz replaces the logits in each tile. dh_TD needs a single chunk.
    """
    widest = max(len(h_TD[chunk]) for chunk in chunks)
    first_h = _wide(h_TD[chunks[0]])
    columns = [(per_token_4T[:, c].contiguous(), target_T[c], target_dz_T[c].contiguous()) for c in chunks]
    passes = _passes(first_h)
    rows = _block_rows(W_VD, widest, passes)
    tile = _Tile(first_h, rows, widest)
    assert dh_TD is None or len(chunks) == 1, "sums of dh are held for one chunk"
    sum_TD = None
    if dh_TD is not None:
        rows_TD = dh_TD[chunks[0]]
        sum_TD = rows_TD.zero_() if rows_TD.dtype == first_h.dtype else torch.zeros_like(first_h)
    for first, W_BD in _blocks(W_VD, rows):
        sum_BD = None
        for i, chunk in enumerate(chunks):
            h = first_h if i == 0 else _wide(h_TD[chunk])
            per_token, target, target_dz = columns[i]
            z_BT = tile.logits(W_BD, h)
            passes.gradient(z_BT, scale, per_token, target, first, target_dz)
            if sum_TD is not None:
                sum_TD.addmm_(z_BT.T, W_BD)
            if dW_VD is None:
                continue
            if sum_BD is not None:
                sum_BD.addmm_(z_BT, h)
            elif dW_VD.dtype == h.dtype:
                sum_BD = torch.mm(z_BT, h, out=dW_VD[first : first + rows])
            else:
                sum_BD = z_BT @ h
        if dW_VD is not None and dW_VD.dtype != sum_BD.dtype:
            dW_VD[first : first + rows] = sum_BD
    if sum_TD is not None and sum_TD.dtype != dh_TD.dtype:
        rows_TD.copy_(sum_TD)
