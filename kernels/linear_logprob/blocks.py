"""The walk over the vocabulary with torch's products: one float32 tile of logits at a time, forward and backward.

T tokens (or a chunk of them), D model, V vocabulary, B rows of a block. A tile is z_BT = W_BD h_TD^T: tokens lie along
its rows, so that its sums run down the columns, and the product is no slower than the other way round. Blocks run over
the vocabulary, not over tokens, because at V / D = 60 and more the traffic of dW would drown the product.

Narrower inputs are made float32 block by block. On a CPU `bfloat16` does better, where it could be built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from kernels.linear_logprob import cpu, eager

TILE_ELEMENTS = 1 << 21  # 8 MiB: at half of it the products lose 5 %
EAGER_TILE_ELEMENTS = 1 << 20  # `eager` holds up to ten tiles
LARGEST_TILE_ELEMENTS = 1 << 22  # with so many tokens that a block would else have too few rows for a good product
NARROW_BLOCK_ELEMENTS = 1 << 20  # of W made float32
NARROW_CHUNK_ELEMENTS = 2 << 20  # of h made float32, and as many of its gradient's sum
FORWARD_TOKENS = 4096  # tokens per walk over W


def chunk_tokens(h_TD: Tensor) -> int:
    """Number of tokens whose gradient is summed together."""
    wide = h_TD.dtype in (torch.float32, torch.float64)
    return max(1, h_TD.shape[0] if wide else NARROW_CHUNK_ELEMENTS // h_TD.shape[1])


def _passes(h_TD: Tensor) -> ModuleType | cpu.Passes:
    native = h_TD.device.type == "cpu" and h_TD.dtype == torch.float32 and cpu.library() is not None
    return cpu.Passes(cpu.library()) if native else eager


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _block_rows(W_VD: Tensor, tokens: int, passes: ModuleType | cpu.Passes) -> int:
    tokens = max(1, tokens)
    rows = EAGER_TILE_ELEMENTS // tokens
    if passes is not eager:
        rows = max(TILE_ELEMENTS // tokens, min(128, LARGEST_TILE_ELEMENTS // tokens))
    if W_VD.dtype not in (torch.float32, torch.float64):
        rows = min(rows, NARROW_BLOCK_ELEMENTS // W_VD.shape[1])
    return max(1, min(rows, W_VD.shape[0], 8192))


def _blocks(W_VD: Tensor, bias_V: Tensor | None, rows: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """First id, W_BD in float32 and bias_B of every block."""
    for first in range(0, W_VD.shape[0], rows):
        yield first, _wide(W_VD[first : first + rows]), None if bias_V is None else bias_V[first : first + rows]


class _Tiles:
    """Buffers for the tiles of one or two sets of hidden states, allocated once."""

    def __init__(self, like: Tensor, rows: int, tokens: int, count: int):
        self.store = [like.new_empty(rows * tokens + cpu.SPARE) for _ in range(count)]

    def of(self, W_BD: Tensor, *states: Tensor | None) -> list[Tensor | None]:
        tiles: list[Tensor | None] = []
        for h_TD, store in zip(states, self.store):
            shape = len(W_BD), len(h_TD)
            tiles.append(torch.mm(W_BD, h_TD.T, out=store[: shape[0] * shape[1]].view(shape)))
        return tiles if len(tiles) == len(states) else [*tiles, None]


def totals(
    h_TD: Tensor, ref_TD: Tensor | None, W_VD: Tensor, bias_V: Tensor | None, scale: float, target_T: Tensor
) -> tuple[Tensor, Tensor]:
    """kept_6T and found_3T (see `eager`) of every token."""
    rows_at_once = min(FORWARD_TOKENS, chunk_tokens(h_TD))
    parts = []
    for start in range(0, max(1, h_TD.shape[0]), rows_at_once):
        chunk = slice(start, start + rows_at_once)
        h, ref = _wide(h_TD[chunk]), None if ref_TD is None else _wide(ref_TD[chunk])
        passes = _passes(h)
        kept_P6T, found_3T = eager.nothing_kept(passes.PARTS, len(h), h.device)
        rows = _block_rows(W_VD, len(h), passes)
        tiles = _Tiles(h, rows, len(h), 1 if ref is None else 2)
        for first, W_BD, bias_B in _blocks(W_VD, bias_V, rows):
            passes.statistics(*tiles.of(W_BD, h, ref), bias_B, scale, kept_P6T, target_T[chunk], first, found_3T)
        parts.append((eager.merged(kept_P6T), found_3T))
    return torch.cat([kept for kept, _ in parts], 1), torch.cat([found for _, found in parts], 1)


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
    """One walk with dz in the tiles. Writes the rows of dh_TD in `chunks`, and dW_VD of them; None: not wanted."""
    widest = max(len(h_TD[chunk]) for chunk in chunks)
    states = [(_wide(h_TD[chunk]), None if ref_TD is None else _wide(ref_TD[chunk])) for chunk in chunks[:1]]
    columns = [(per_token_6T[:, c].contiguous(), target_T[c], target_dz_T[c].contiguous()) for c in chunks]
    passes = _passes(states[0][0])
    rows = _block_rows(W_VD, widest, passes)
    tiles = _Tiles(states[0][0], rows, widest, 1 if ref_TD is None else 2)
    assert dh_TD is None or len(chunks) == 1, "sums of dh are held for one chunk"
    sum_TD = None
    if dh_TD is not None:
        rows_TD = dh_TD[chunks[0]]
        sum_TD = rows_TD.zero_() if rows_TD.dtype == states[0][0].dtype else torch.zeros_like(states[0][0])
    for first, W_BD, bias_B in _blocks(W_VD, bias_V, rows):
        sum_BD = None
        for i, chunk in enumerate(chunks):
            h, ref = states[0] if i == 0 else (_wide(h_TD[chunk]), None if ref_TD is None else _wide(ref_TD[chunk]))
            per_token, target, target_dz = columns[i]
            z_BT, ref_BT = tiles.of(W_BD, h, ref)
            passes.gradient(z_BT, ref_BT, bias_B, scale, per_token, target, first, target_dz)
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
