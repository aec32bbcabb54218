"""Run chunks of a prefix tree through a model: new tokens attend to the cached keys of their ancestors and themselves.

Shapes: T rows of a forward, D model size, H heads, G key/value heads, K head size, L layers, P positions of a path.

A token's log-probability must be the same bits whatever shares its forward, wherever its node begins, and however a
long node is split into chunks. On one CPU thread this takes three rules, found by measurement (MKL in torch 2.13,
AVX-512):
 - Matrix products. With AMX we use kernels.skinny_linear, with rows that do not depend on each other. Without AMX we
   use PyTorch: a row of a float32 product has the same bits in every product of 16 rows or more (measured up to
   16,384), at any row index, but other bits in smaller products. And with 96 rows or fewer the models may use
   skinny_linear. So a forward has a multiple of 32 rows, at least 128. Several threads in one product break this (a
   product that sums over 2,048 is then split along the sum), so each thread runs whole forwards instead.
 - Element-wise kernels compute the tail of an array by other code. A multiple of 32 rows has no tail.
 - Attention. A row of kernels.attention depends only on its query and the keys up to it. Without a compiler we use
   PyTorch's attention and split the queries into tiles of 256 positions, counted from the root. The queries of a tile
   always see the keys from 0 to the tile's end, with later keys masked, in a multiple of 16 rows.
On a GPU, the library chooses a kernel by shape, so every forward has exactly the same number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from engine.batch import PackedBatch, on_device
from engine.models.attend import Attend, AttentionOptions
from evaluation.scoring.prefix_tree import Node
from kernels.attention import attention_after, has_attention_after
from kernels.attention.fold import EXTRA, fold_key, fold_query
from kernels.linear_logprob import linear_logprob

ROWS = 32  # rows of a call of the head; a CPU forward has a multiple of it
MIN_ROWS = 128  # fewest rows of a CPU forward
QUERIES = 16  # a call of attention has a multiple of these
GPU_ROWS = 1024  # rows of a GPU forward
TILE = 256  # positions of a tile

Segment = tuple[Tensor, Tensor]  # keys and values of n consecutive tokens, [n, G, K] each


@dataclass(frozen=True)
class Chunk:
    """Positions start to stop-1 of a node. All positions before them are computed already."""

    node: Node
    start: int
    stop: int


@dataclass(frozen=True)
class KeysValues:
    """The keys [L, n, G, K or K + 8] and values [L, n, G, K] of a node's n tokens. Memory order: [L, G, n, K]."""

    keys: Tensor
    values: Tensor


class TreeForward:
    """The forward over chunks of a tree, on a GPU or in one CPU thread."""

    def __init__(self, model: Any, num_positions: int):
        weight = model.head_weight
        self.model, self.device, self.dtype = model, weight.device, weight.dtype
        self.in_cpp = has_attention_after(weight)
        folds = model.config.model_type == "bloom" and not self.in_cpp
        self.key_size = model.head_size + (EXTRA if folds else 0)
        if not self.in_cpp:
            self.size = -(-num_positions // TILE) * TILE
            self.masks: dict[int | None, Tensor] = {}

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> tuple[list[list[int]], Tensor]:
        """Compute chunks of different nodes. The keys and values of their ancestors must be cached.

        Return, for each target of the chunks, the indices of its scores and its log-probability (float32 [targets]).
        """
        for chunk in chunks:
            if chunk.node.kv is None and (chunk.node.num_kept or chunk.stop < chunk.node.stop):
                chunk.node.kv = self._allocate(chunk.node)
        batch = self._batch(chunks)
        attend = self._attend(chunks, batch.positions_T)
        h_TD = self.model.run(self.model.embed(batch), batch, 0, self.model.num_layers, attend)
        rows, tokens, indices = gather_targets(chunks)
        if not rows:
            return [], torch.empty(0)
        return indices, self._logprob(self.model.norm(h_TD[on_device(rows, torch.int64, self.device)]), tokens)

    def _batch(self, chunks: Sequence[Chunk]) -> PackedBatch:
        """Return the chunks as one batch, with filler rows of token 0 after them."""
        lengths = [chunk.stop - chunk.start for chunk in chunks]
        total = sum(lengths)
        rows = GPU_ROWS if self.device.type == "cuda" else max(MIN_ROWS, total + -total % ROWS)
        filler = rows - total
        tokens = [torch.from_numpy(c.node.tokens[c.start - c.node.start : c.stop - c.node.start]) for c in chunks]
        positions = [torch.arange(c.start, c.stop) for c in chunks]
        if filler:
            lengths.append(filler)
            tokens.append(torch.zeros(filler, dtype=torch.int64))
            positions.append(torch.zeros(filler, dtype=torch.int64))
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        batch = PackedBatch(torch.cat(tokens), torch.cat(positions), bounds, tuple(lengths))
        return batch.to(self.device)

    def _logprob(self, h_ND: Tensor, tokens: list[int]) -> Tensor:
        """Return the log-probability of each token, float32 [N] on the CPU. Each call of the head has ROWS rows."""
        filler = -len(tokens) % ROWS
        h_ND = pad(h_ND, (0, 0, 0, filler))
        target_N = on_device([*tokens, *[0] * filler], torch.int64, self.device)
        calls = zip(h_ND.split(ROWS), target_N.split(ROWS))
        parts = [linear_logprob(h, self.model.head_weight, target)[0] for h, target in calls]
        return torch.cat(parts)[: len(tokens)].cpu()

    def _allocate(self, node: Node) -> KeysValues:
        shape = (self.model.num_layers, self.model.num_kv_heads, len(node.tokens))
        keys, values = (
            torch.empty(*shape, size, device=self.device, dtype=self.dtype).transpose(1, 2)
            for size in (self.key_size, self.model.head_size)
        )
        return KeysValues(keys, values)

    def _attend(self, chunks: Sequence[Chunk], positions_T: Tensor) -> Attend:
        paths = [chunk.node.path for chunk in chunks]

        def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, options: AttentionOptions) -> Tensor:
            slopes_H, scale, window = options
            scale = self.model.head_size**-0.5 if scale is None else scale
            out_THK = torch.empty(q_THK.shape, device=self.device, dtype=self.dtype)
            if not self.in_cpp and slopes_H is not None:
                q_THK, k_TGK = fold_query(q_THK, slopes_H, scale), fold_key(k_TGK, positions_T)
            row = 0
            for chunk, path in zip(chunks, paths):
                rows = slice(row, row + chunk.stop - chunk.start)
                segments = _segments(chunk, path, layer, k_TGK[rows], v_TGK[rows])
                if self.in_cpp:
                    attention_after(q_THK[rows], segments, slopes_H, scale, window, out_THK[rows])
                else:
                    out_THK[rows] = self._attend_in_tiles(q_THK[rows], segments, chunk.start, scale, window)
                row = rows.stop
            out_THK[row:] = 0  # filler rows
            return out_THK

        return attend

    def _attend_in_tiles(
        self, q_NHK: Tensor, segments: Sequence[Segment], first: int, scale: float, window: int | None
    ) -> Tensor:
        """Return PyTorch's attention, [N, H, K], of queries at positions first to first+N-1."""
        filler, folded = -(first + len(q_NHK)) % TILE, self.key_size - self.model.head_size
        k_GPK, v_GPK = (torch.cat(parts).transpose(0, 1) for parts in zip(*segments))
        # PyTorch's fast kernel needs values as wide as keys.
        k_GPK, v_GPK = pad(k_GPK, (0, 0, 0, filler)), pad(v_GPK, (0, folded, 0, filler))
        parts = []
        for start, stop in split_at_tiles(first, first + len(q_NHK)):
            q_QHK = pad(q_NHK[start - first : stop - first], (0, 0, 0, 0, 0, (start - stop) % QUERIES))
            parts.append(self._attend_tile(q_QHK, start, k_GPK, v_GPK, scale, window)[: stop - start])
        return torch.cat(parts)[..., : self.model.head_size]

    def _attend_tile(
        self, q_NHK: Tensor, start: int, keys_GPK: Tensor, values_GPK: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Return the attention of N queries of one tile, from position start on, to all keys up to the tile's end."""
        count, num_heads, groups = q_NHK.shape[0], q_NHK.shape[1], keys_GPK.shape[0]
        end = (start // TILE + 1) * TILE
        mask = self._mask(window)[start % TILE : start % TILE + count, self.size - end :]
        # Stack the heads that share keys as rows of one product, so that no key is copied.
        shared = num_heads // groups
        q_GNK = q_NHK.unflatten(1, (groups, shared)).permute(1, 2, 0, 3).flatten(1, 2)
        out_GNK = scaled_dot_product_attention(
            q_GNK[None],
            keys_GPK[None, :, :end],
            values_GPK[None, :, :end],
            attn_mask=mask if shared == 1 else mask.repeat(shared, 1),
            scale=scale,
        )[0]
        return out_GNK.unflatten(1, (shared, count)).permute(2, 0, 1, 3).flatten(1, 2)

    def _mask(self, window: int | None) -> Tensor:
        """Return the mask of one tile of queries. Its last columns are those of the tile; a tile uses as many columns
        as it has keys. Rows after TILE are for filler queries and see everything.
        """
        if window not in self.masks:
            mask = torch.zeros(TILE + QUERIES, self.size, device=self.device, dtype=self.dtype)
            seen = torch.ones(TILE, self.size, device=self.device, dtype=torch.bool).tril(self.size - TILE)
            if window is not None:
                seen = seen.triu(self.size - TILE - window + 1)
            self.masks[window] = mask
            mask[:TILE].masked_fill_(~seen, float("-inf"))
        return self.masks[window]


def _segments(chunk: Chunk, path: Sequence[Node], layer: int, k_NGK: Tensor, v_NGK: Tensor) -> list[Segment]:
    """Return the keys and values up to the chunk's last token. Store the chunk's own ones if its node has a cache."""
    caches = [node.kv for node in path]
    segments = [(kv.keys[layer], kv.values[layer]) for kv in caches[:-1] if isinstance(kv, KeysValues)]
    assert len(segments) == len(caches) - 1, "the keys of an ancestor are not cached"
    if not isinstance(own := caches[-1], KeysValues):
        return [*segments, (k_NGK, v_NGK)]
    keys, values = (x[layer][: chunk.stop - chunk.node.start] for x in (own.keys, own.values))
    keys[chunk.start - chunk.node.start :], values[chunk.start - chunk.node.start :] = k_NGK, v_NGK
    return [*segments, (keys, values)]


def split_at_tiles(start: int, stop: int) -> list[tuple[int, int]]:
    """Split positions start to stop-1 where a tile begins. Return (start, stop) of each part."""
    cuts = [start, *range((start // TILE + 1) * TILE, stop, TILE), stop]
    return list(zip(cuts, cuts[1:]))


def gather_targets(chunks: Sequence[Chunk]) -> tuple[list[int], list[int], list[list[int]]]:
    """Return, for each target of the chunks, its row in the batch, its token and the indices of its scores."""
    rows, tokens, indices, row = [], [], [], 0
    for chunk in chunks:
        for position in sorted(chunk.node.targets):
            if chunk.start <= position < chunk.stop:
                for token, score_indices in chunk.node.targets[position].items():
                    rows.append(row + position - chunk.start)
                    tokens.append(token)
                    indices.append(score_indices)
        row += chunk.stop - chunk.start
    return rows, tokens, indices
