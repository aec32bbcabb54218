"""The walk over the vocabulary for bfloat16 on a CPU, in C++: products with float32 results, fused with the passes.

Shapes: T tokens (or a chunk of them), D model, V vocabulary; N, B and K are tokens, rows of a block of W, and D, each
rounded up to a multiple of 32. torch's bfloat16 product rounds each logit to 8 bits: near -1e4 nothing of it is left.
This product keeps its float32 sums, with AMX, or with vectors where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kernels.common import native
from kernels.linear_logprob import cpu, eager
from kernels.linear_logprob.columns import Results, factors, results_of, row_dots

__all__ = ["available", "chunk_tokens", "factors", "has_amx", "logits", "statistics", "totals", "write_gradients"]

UNIT = 32
CHUNK_TOKENS = 4096
CHUNK_ELEMENTS = 4 << 20  # of h: packed twice (4 bytes), beside the float32 sum of its gradient
BLOCK_ELEMENTS = 3 << 19  # of a block of W (transposed, and its gradient's sum: 6 bytes) and of dz (twice: 4 bytes)
STRIP_ROWS, STRIP_TOKENS = 256, 512  # of the logits that a thread holds, as in bfloat16.cpp


def available(h_TD: Tensor) -> bool:
    """Whether this walk handles such a tensor, and could be compiled."""
    return h_TD.device.type == "cpu" and h_TD.dtype == torch.bfloat16 and cpu.library() is not None


def chunk_tokens(h_TD: Tensor) -> int:
    """Return how many tokens' gradients are summed at a time."""
    return max(UNIT, min(CHUNK_TOKENS, CHUNK_ELEMENTS // h_TD.shape[1] // UNIT * UNIT))


def _up(count: int) -> int:
    return max(1, -(-count // UNIT)) * UNIT


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return [rows, columns] with x at the upper left and zeros elsewhere; x itself if it is that already."""
    if x.shape == (rows, columns) and x.is_contiguous():
        return x
    out = x.new_zeros(rows, columns)
    out[: x.shape[0], : x.shape[1]] = x
    return out


def _panels(h_TD: Tensor) -> Tensor:
    """Return h as a product over D reads it: pairs of bfloat16 as int32, [N / 16, K / 2, 16]."""
    h_NK = _padded(h_TD, _up(h_TD.shape[0]), _up(h_TD.shape[1]))
    return h_NK.view(torch.int32).view(len(h_NK) // 16, 16, -1).transpose(1, 2).contiguous()


def _token_panels(h_TD: Tensor) -> Tensor:
    """Return h as a product over tokens reads it: pairs of bfloat16, [K / 16, N / 2, 16, 2]."""
    h_NK = _padded(h_TD, _up(h_TD.shape[0]), _up(h_TD.shape[1]))
    return h_NK.view(len(h_NK) // 2, 2, -1, 16).permute(2, 0, 3, 1).contiguous()


def _block_rows(W_VD: Tensor, tokens: int) -> int:
    rows = min(BLOCK_ELEMENTS // _up(W_VD.shape[1]), BLOCK_ELEMENTS // _up(tokens), _up(W_VD.shape[0]))
    return max(UNIT, rows // UNIT * UNIT)


def _blocks(W_VD: Tensor, rows: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the first id, the number of existing rows, and W_BK for each block. W_BK is a view of W where possible."""
    inner = W_VD.shape[1]
    for first in range(0, W_VD.shape[0], rows):
        W_BD = W_VD[first : first + rows]
        if W_BD.stride(1) != 1 or inner % UNIT or len(W_BD) % UNIT:
            W_BD = _padded(W_BD, _up(len(W_BD)), _up(inner))
        yield first, min(rows, W_VD.shape[0] - first), W_BD


class _Chunk:
    """A chunk's hidden states as the C++ reads them, and memory for its logits."""

    def __init__(self, h_TD: Tensor):
        self.tokens = _up(h_TD.shape[0])
        self.h = _panels(h_TD)
        self.threads = native.threads()
        self.store = torch.empty(self.threads * STRIP_ROWS * min(STRIP_TOKENS, self.tokens), dtype=torch.float32)
        self.amx = has_amx()

    def arguments(self, count: int, W_BK: Tensor, scale: float) -> tuple:
        """Return the arguments that all C++ walks start with."""
        W = (cpu.address(W_BK), W_BK.stride(0), count, *W_BK.shape)
        return *W, cpu.address(self.h), self.tokens, scale, cpu.address(self.store), self.amx, self.threads


def has_amx() -> int:
    """Return 1 where the processor has AMX for bfloat16 and the operating system allows it, else 0."""
    return cpu.library().logprob_has_amx()


def statistics(h_TD: Tensor, W_VD: Tensor, scale: float, target_T: Tensor) -> Results:
    """Return what `columns.results_of` does."""
    return results_of(*totals(h_TD, W_VD, scale, target_T), row_dots(h_TD, W_VD, target_T), scale)


def totals(h_TD: Tensor, W_VD: Tensor, scale: float, target_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return totals_3T (see `eager`) and the targets' logits [T], float64 both."""
    size = chunk_tokens(h_TD)
    merged, logits = [], []
    for start in range(0, max(1, h_TD.shape[0]), size):
        part = slice(start, start + size)
        chunk = _Chunk(h_TD[part])
        target = torch.nn.functional.pad(target_T[part], (0, chunk.tokens - len(target_T[part])), value=-1)
        totals_P3N, target_logit_N = eager.empty_totals(chunk.threads, chunk.tokens, h_TD.device)
        for first, count, W_BK in _blocks(W_VD, _block_rows(W_VD, chunk.tokens)):
            columns = cpu.address(totals_P3N), cpu.address(target), first, cpu.address(target_logit_N)
            cpu.library().logprob_bf16_statistics(*chunk.arguments(count, W_BK, scale), *columns)
        merged.append(eager.merge(totals_P3N)[:, : len(h_TD[part])])
        logits.append(target_logit_N[: len(h_TD[part])])
    return torch.cat(merged, 1), torch.cat(logits)


def logits(h_TD: Tensor, W_VD: Tensor, out_TV: Tensor | None = None) -> Tensor:
    """Return h W^T, float32 [T, V], with the same float32 sums as the other walks; written to out_TV if given."""
    chunk, out_TV = _Chunk(h_TD), torch.empty(len(h_TD), len(W_VD)) if out_TV is None else out_TV
    for first, count, W_BK in _blocks(W_VD, _block_rows(W_VD, chunk.tokens)):
        destination = (len(h_TD), out_TV.data_ptr() + first * out_TV.itemsize, len(W_VD))
        cpu.library().logprob_bf16_logits(*chunk.arguments(count, W_BK, 1.0), *destination)
    return out_TV


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
    widest = _up(max(len(h_TD[chunk]) for chunk in chunks))
    inner, rows = _up(h_TD.shape[1]), _block_rows(W_VD, widest)
    scratch = W_VD.new_empty  # bfloat16, allocated once
    pairs = transposed = sum_NK = lines = sum_BK = None
    if dh_TD is not None:
        pairs, transposed, sum_NK = scratch(rows * widest), scratch(rows * inner), torch.zeros(widest * inner)
    with_dW = dW_VD is not None
    if with_dW:
        lines, sum_BK = scratch(rows * widest), torch.empty(rows * inner)

    def packed(part: slice) -> tuple[_Chunk, list[Tensor], Tensor | None]:
        """Return a chunk as the C++ reads it, its tokens' three columns, and h packed for dW."""
        chunk = _Chunk(h_TD[part])
        added = (0, chunk.tokens - len(target_T[part]))
        pad = torch.nn.functional.pad
        columns = pad(per_token_4T[:, part], added), pad(target_T[part], added, value=-1), pad(target_dz_T[part], added)
        return chunk, [c.contiguous() for c in columns], _token_panels(h_TD[part]) if with_dW else None

    def add(ready: tuple, first: int, count: int, W_BK: Tensor, starts: bool) -> None:
        chunk, (per_token, target, target_dz), h_tokens = ready
        cpu.library().logprob_bf16_gradient(
            *chunk.arguments(count, W_BK, scale),
            *(cpu.address(per_token), cpu.address(target), first, cpu.address(target_dz)),
            *(cpu.address(x) for x in (pairs, transposed, sum_NK, lines, h_tokens, sum_BK)),
            starts,
        )

    # Several chunks are packed again for every block: keeping them would take as much memory as h.
    only = packed(chunks[0]) if len(chunks) == 1 else None
    for block in _blocks(W_VD, rows):
        for part in chunks:
            add(only or packed(part), *block, part is chunks[0])
        first, count, W_BK = block
        if with_dW:
            out = dW_VD[first : first + count]
            sizes = len(W_BK), count, dW_VD.shape[1]
            cpu.library().logprob_bf16_unpack(
                cpu.address(sum_BK), *sizes, cpu.address(out), out.stride(0), native.threads()
            )
    if dh_TD is not None:
        out = dh_TD[chunks[0]]
        for rows_TD, panels in zip(out.split(256), sum_NK.view(-1, inner, 16).split(16)):
            rows_TD.copy_(panels.transpose(1, 2).reshape(-1, inner)[: len(rows_TD), : out.shape[1]])
