"""The walk over the vocabulary for bfloat16 on a CPU: products with float32 results, fused with the passes, in C++.

T tokens (or a chunk of them), D model, V vocabulary; N, B and K are tokens, rows of a block and D, each rounded up to a
multiple of 32. torch's bfloat16 product rounds the logits to 8 bits, which is all that plain PyTorch has and near -1e4
leaves nothing of them; this one keeps its float32 sums (AMX, or vectors where there is none).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kernels.common import native
from kernels.linear_logprob import cpu, eager

UNIT = 32
CHUNK_TOKENS = 4096
CHUNK_ELEMENTS = 4 << 20  # of h: with a reference it is packed three times (6 bytes), beside its gradient's float32 sum
BLOCK_ELEMENTS = 3 << 19  # of a block of W (turned and its gradient's float32 sum, 6 bytes) and of dz (twice, 4 bytes)
STRIP_ROWS, STRIP_TOKENS = 256, 512  # of the logits that a thread holds, as in bfloat16.cpp


def available(h_TD: Tensor) -> bool:
    """Whether this walk is for such a tensor, and could be built."""
    return h_TD.device.type == "cpu" and h_TD.dtype == torch.bfloat16 and cpu.library() is not None


def chunk_tokens(h_TD: Tensor) -> int:
    """Number of tokens whose gradient is summed together."""
    return max(UNIT, min(CHUNK_TOKENS, CHUNK_ELEMENTS // h_TD.shape[1] // UNIT * UNIT))


def _up(count: int) -> int:
    return max(1, -(-count // UNIT)) * UNIT


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """x in the upper left of zeros [rows, columns]; x itself if it is that large and laid out so."""
    if x.shape == (rows, columns) and x.is_contiguous():
        return x
    out = x.new_zeros(rows, columns)
    out[: x.shape[0], : x.shape[1]] = x
    return out


def _panels(h_TD: Tensor) -> Tensor:
    """[N / 16, K / 2, 16] pairs: what a product over D reads of h."""
    h_NK = _padded(h_TD, _up(h_TD.shape[0]), _up(h_TD.shape[1]))
    return h_NK.view(torch.int32).view(len(h_NK) // 16, 16, -1).transpose(1, 2).contiguous()


def _token_panels(h_TD: Tensor) -> Tensor:
    """[K / 16, N / 2, 16] pairs: what a product over tokens reads of h."""
    h_NK = _padded(h_TD, _up(h_TD.shape[0]), _up(h_TD.shape[1]))
    return h_NK.view(len(h_NK) // 2, 2, -1, 16).permute(2, 0, 3, 1).contiguous()


def _block_rows(W_VD: Tensor, tokens: int) -> int:
    rows = min(BLOCK_ELEMENTS // _up(W_VD.shape[1]), BLOCK_ELEMENTS // _up(tokens), _up(W_VD.shape[0]))
    return max(UNIT, rows // UNIT * UNIT)


def _blocks(W_VD: Tensor, bias_V: Tensor | None, rows: int) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """First id, rows that exist, W_BK and bias_B of every block: a view of W where its layout allows."""
    inner = W_VD.shape[1]
    for first in range(0, W_VD.shape[0], rows):
        W_BD = W_VD[first : first + rows]
        if W_BD.stride(1) != 1 or inner % UNIT or len(W_BD) % UNIT:
            W_BD = _padded(W_BD, _up(len(W_BD)), _up(inner))
        count = min(rows, W_VD.shape[0] - first)
        yield first, count, W_BD, None if bias_V is None else bias_V[first : first + rows]


class _Chunk:
    """A chunk's hidden states as the C++ reads them, and memory for its logits."""

    def __init__(self, h_TD: Tensor, ref_TD: Tensor | None):
        self.tokens = _up(h_TD.shape[0])
        self.h, self.ref = _panels(h_TD), None if ref_TD is None else _panels(ref_TD)
        self.threads = native.threads()
        logits = self.threads * STRIP_ROWS * min(STRIP_TOKENS, self.tokens) * (1 if ref_TD is None else 2)
        self.store = torch.empty(logits, dtype=torch.float32)
        self.amx = has_amx()

    def arguments(self, count: int, W_BK: Tensor, bias_B: Tensor | None, scale: float) -> tuple:
        """What both C++ functions begin with."""
        W = (cpu.address(W_BK), W_BK.stride(0), count, *W_BK.shape)
        states = (cpu.address(self.h), cpu.address(self.ref), self.tokens, cpu.address(bias_B), scale)
        return *W, *states, cpu.address(self.store), self.amx, self.threads


def has_amx() -> int:
    """1 where the processor multiplies tiles of bfloat16 and the kernel lets us."""
    return cpu.library().logprob_has_amx()


def totals(
    h_TD: Tensor, ref_TD: Tensor | None, W_VD: Tensor, bias_V: Tensor | None, scale: float, target_T: Tensor
) -> tuple[Tensor, Tensor]:
    """kept_6T and found_3T (see `eager`) of every token."""
    size = chunk_tokens(h_TD)
    kept, found = [], []
    for start in range(0, max(1, h_TD.shape[0]), size):
        part = slice(start, start + size)
        chunk = _Chunk(h_TD[part], None if ref_TD is None else ref_TD[part])
        target = torch.nn.functional.pad(target_T[part], (0, chunk.tokens - len(target_T[part])), value=-1)
        kept_P6N, found_3N = eager.nothing_kept(chunk.threads, chunk.tokens, h_TD.device)
        for first, count, W_BK, bias_B in _blocks(W_VD, bias_V, _block_rows(W_VD, chunk.tokens)):
            columns = cpu.address(kept_P6N), cpu.address(target), first, cpu.address(found_3N)
            cpu.library().logprob_bf16_statistics(*chunk.arguments(count, W_BK, bias_B, scale), *columns)
        kept.append(eager.merged(kept_P6N)[:, : len(h_TD[part])])
        found.append(found_3N[:, : len(h_TD[part])])
    return torch.cat(kept, 1), torch.cat(found, 1)


def logits(h_TD: Tensor, W_VD: Tensor) -> Tensor:
    """float32 [T, V]: h W^T with the sums that the other walks see."""
    chunk, out_TV = _Chunk(h_TD, None), torch.empty(len(h_TD), len(W_VD))
    for first, count, W_BK, _ in _blocks(W_VD, None, _block_rows(W_VD, chunk.tokens)):
        where = (len(h_TD), out_TV.data_ptr() + first * out_TV.itemsize, len(W_VD))
        cpu.library().logprob_bf16_logits(*chunk.arguments(count, W_BK, None, 1.0), *where)
    return out_TV


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
    """One walk with dz. Writes the rows of dh_TD that `chunks` name, and dW_VD of them; None: not wanted."""
    assert dh_TD is None or len(chunks) == 1, "sums of dh are held for one chunk"
    widest = _up(max(len(h_TD[chunk]) for chunk in chunks))
    inner, rows = _up(h_TD.shape[1]), _block_rows(W_VD, widest)
    shared = W_VD.new_empty  # bfloat16 scratch, taken once
    pairs = turned = sum_NK = lines = sum_BK = None
    if dh_TD is not None:
        pairs, turned, sum_NK = shared(rows * widest), shared(rows * inner), torch.zeros(widest * inner)
    with_dW = dW_VD is not None
    if with_dW:
        lines, sum_BK = shared(rows * widest), torch.empty(rows * inner)

    def prepared(part: slice) -> tuple[_Chunk, list[Tensor], Tensor | None]:
        """A chunk as the C++ reads it, the three columns of its tokens, and what the product for dW reads of h."""
        chunk = _Chunk(h_TD[part], None if ref_TD is None else ref_TD[part])
        added = (0, chunk.tokens - len(target_T[part]))
        pad = torch.nn.functional.pad
        columns = pad(per_token_6T[:, part], added), pad(target_T[part], added, value=-1), pad(target_dz_T[part], added)
        return chunk, [c.contiguous() for c in columns], _token_panels(h_TD[part]) if with_dW else None

    def add(ready: tuple, first: int, count: int, W_BK: Tensor, bias_B: Tensor | None, begins: bool) -> None:
        chunk, (per_token, target, target_dz), h_tokens = ready
        cpu.library().logprob_bf16_gradient(
            *chunk.arguments(count, W_BK, bias_B, scale),
            *(cpu.address(per_token), cpu.address(target), first, cpu.address(target_dz)),
            *(cpu.address(x) for x in (pairs, turned, sum_NK, lines, h_tokens, sum_BK)),
            begins,
        )

    # Several chunks are made ready again for every block: kept, they would be as large as h.
    only = prepared(chunks[0]) if len(chunks) == 1 else None
    for block in _blocks(W_VD, bias_V, rows):
        for part in chunks:
            add(only or prepared(part), *block, part is chunks[0])
        first, count, W_BK, _ = block
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
