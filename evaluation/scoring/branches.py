"""Branches of a prefix tree through a model: new tokens attend to the kept keys of their ancestors and to themselves.

Shapes: T rows of one forward, D model, H heads, G key/value heads, K head size, L layers, P positions of a path.

The log-probabilities of a token must not depend on what shares its forward, on where its node happens to begin, or on
how a long node is cut. On one CPU thread that takes three rules, found by measurement (MKL in torch 2.13, AVX-512):
 - products: with AMX they are kernels.skinny_linear's, whose rows do not depend on each other. Without it they are
   PyTorch's: a row of a float32 product has the same bits in every product of 16 rows or more (measured up to 16,384),
   wherever it stands, and others below; and with 96 rows or fewer the models may take skinny_linear. So a forward has
   a multiple of 32 rows, and at least 128. Several threads inside a product break this (a product that sums over
   2,048 is then cut along the sum): threads run whole forwards side by side instead.
 - element-wise kernels treat the end of an array apart: a multiple of 32 rows has no such end.
 - attention: kernels.attention's rows depend on nothing but their own query and the keys before it. Without a compiler
   PyTorch's is cut: queries where tiles of 256 positions, counted from the root, begin; the queries of a tile always
   see the keys from 0 to the tile's end, those after them masked, in a multiple of 16 rows.
On a GPU, where the library picks a kernel by shape, every forward has exactly the same number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from engine.batch import PackedBatch
from engine.models import Attend
from evaluation.scoring.prefix_tree import Node
from kernels.attention import attention_after, has_attention_after
from kernels.attention.fold import EXTRA, fold_key, fold_query
from kernels.linear_logprob import linear_logprob

ROWS = 32  # a forward on a CPU has a multiple of these, and a call of the head exactly so many
FEWEST_ROWS = 128  # a forward on a CPU has at least so many
QUERIES = 16  # a call of attention has a multiple of these
GPU_ROWS = 1024  # a forward on a GPU has exactly so many
TILE = 256  # positions

Segment = tuple[Tensor, Tensor]  # keys and values [n, G, K] of n tokens, one behind the other


@dataclass(frozen=True)
class Piece:
    """Positions start to stop-1 of a node; all before them are computed."""

    node: Node
    start: int
    stop: int


@dataclass(frozen=True)
class KeysValues:
    """The keys [L, n, G, K or K + 8] and values [L, n, G, K] of a node's n tokens; in memory, heads before tokens."""

    keys: Tensor
    values: Tensor


class Branches:
    """The forward over pieces of the tree, on one device or in one thread of a CPU."""

    def __init__(self, model: Any, num_positions: int):
        weight = model.head_weight
        self.model, self.device, self.dtype = model, weight.device, weight.dtype
        self.in_cpp = has_attention_after(weight)
        folds = model.config.model_type == "bloom" and not self.in_cpp
        self.key_size = model.head_size + (EXTRA if folds else 0)
        if not self.in_cpp:
            self.size = -(-num_positions // TILE) * TILE
            mask = torch.zeros(TILE + QUERIES, self.size, device=self.device, dtype=self.dtype)
            mask[:TILE, self.size - TILE :].fill_(float("-inf")).triu_(1)
            self.mask = mask  # its last columns serve every tile, being counted from the tile's end

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> tuple[list[list[int]], Tensor]:
        """Compute pieces of different nodes whose ancestors are kept.

        Returns what the nodes' targets ask for: where each log-probability goes, and the float32 log-probabilities.
        """
        for piece in pieces:
            if piece.node.keys is None and (piece.node.kept or piece.stop < piece.node.stop):
                piece.node.keys = self._room(piece.node)
        batch = self._batch(pieces)
        attend = self._attend(pieces, batch.positions_T)
        h_TD = self.model.run(self.model.embed(batch), batch, 0, self.model.num_layers, attend)
        rows, tokens, places = wanted(pieces)
        if not rows:
            return [], torch.empty(0)
        return places, self._logprob(self.model.norm(h_TD[torch.tensor(rows, device=self.device)]), tokens)

    def _batch(self, pieces: Sequence[Piece]) -> PackedBatch:
        """The pieces end to end, and behind them rows of token 0 that nobody reads."""
        lengths = [piece.stop - piece.start for piece in pieces]
        total = sum(lengths)
        rows = GPU_ROWS if self.device.type == "cuda" else max(FEWEST_ROWS, total + -total % ROWS)
        spare = rows - total
        tokens = [torch.from_numpy(p.node.tokens[p.start - p.node.start : p.stop - p.node.start]) for p in pieces]
        positions = [torch.arange(p.start, p.stop) for p in pieces]
        if spare:
            lengths.append(spare)
            tokens.append(torch.zeros(spare, dtype=torch.int64))
            positions.append(torch.zeros(spare, dtype=torch.int64))
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        batch = PackedBatch(torch.cat(tokens), torch.cat(positions), bounds, tuple(lengths))
        return batch.to(self.device)

    def _logprob(self, h_ND: Tensor, tokens: list[int]) -> Tensor:
        """float32 [N] log-probability of each token, by calls of exactly ROWS rows."""
        spare = -len(tokens) % ROWS
        h_ND = pad(h_ND, (0, 0, 0, spare))
        target_N = torch.tensor([*tokens, *[0] * spare], device=self.device)
        calls = zip(h_ND.split(ROWS), target_N.split(ROWS))
        parts = [linear_logprob(h, self.model.head_weight, target)[0] for h, target in calls]
        return torch.cat(parts)[: len(tokens)].cpu()

    def _room(self, node: Node) -> KeysValues:
        shape = (self.model.num_layers, self.model.num_kv_heads, len(node.tokens))
        keys, values = (
            torch.empty(*shape, size, device=self.device, dtype=self.dtype).transpose(1, 2)
            for size in (self.key_size, self.model.head_size)
        )
        return KeysValues(keys, values)

    def _attend(self, pieces: Sequence[Piece], positions_T: Tensor) -> Attend:
        scale, paths = self.model.head_size**-0.5, [piece.node.path for piece in pieces]

        def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, slopes_H: Tensor | None) -> Tensor:
            out_THK = torch.empty(q_THK.shape, device=self.device, dtype=self.dtype)
            if not self.in_cpp and slopes_H is not None:
                q_THK, k_TGK = fold_query(q_THK, slopes_H, scale), fold_key(k_TGK, positions_T)
            row = 0
            for piece, path in zip(pieces, paths):
                rows = slice(row, row + piece.stop - piece.start)
                segments = _segments(piece, path, layer, k_TGK[rows], v_TGK[rows])
                if self.in_cpp:
                    attention_after(q_THK[rows], segments, slopes_H, scale, out_THK[rows])
                else:
                    out_THK[rows] = self._in_tiles(q_THK[rows], segments, piece.start)
                row = rows.stop
            out_THK[row:] = 0  # rows that fill up
            return out_THK

        return attend

    def _in_tiles(self, q_NHK: Tensor, segments: Sequence[Segment], first: int) -> Tensor:
        """Attention by PyTorch, of queries at positions first and after."""
        spare, folded = -(first + len(q_NHK)) % TILE, self.key_size - self.model.head_size
        k_GPK, v_GPK = (torch.cat(parts).transpose(0, 1) for parts in zip(*segments))
        # PyTorch's fast kernel wants values as wide as keys.
        k_GPK, v_GPK = pad(k_GPK, (0, 0, 0, spare)), pad(v_GPK, (0, folded, 0, spare))
        parts = []
        for start, stop in tiles(first, first + len(q_NHK)):
            q_QHK = pad(q_NHK[start - first : stop - first], (0, 0, 0, 0, 0, (start - stop) % QUERIES))
            parts.append(self._tile(q_QHK, start, k_GPK, v_GPK)[: stop - start])
        return torch.cat(parts)[..., : self.model.head_size]

    def _tile(self, q_NHK: Tensor, start: int, keys_GPK: Tensor, values_GPK: Tensor) -> Tensor:
        """Attention of queries at positions start and after, all in one tile, to every key up to the tile's end."""
        count, num_heads, groups = q_NHK.shape[0], q_NHK.shape[1], keys_GPK.shape[0]
        end = (start // TILE + 1) * TILE
        mask = self.mask[start % TILE : start % TILE + count, self.size - end :]
        # The heads that share keys stand below each other as rows of one product: no key is copied.
        shared = num_heads // groups
        q_GNK = q_NHK.unflatten(1, (groups, shared)).permute(1, 2, 0, 3).flatten(1, 2)
        out_GNK = scaled_dot_product_attention(
            q_GNK[None],
            keys_GPK[None, :, :end],
            values_GPK[None, :, :end],
            attn_mask=mask if shared == 1 else mask.repeat(shared, 1),
            scale=self.model.head_size**-0.5,
        )[0]
        return out_GNK.unflatten(1, (shared, count)).permute(2, 0, 1, 3).flatten(1, 2)


def _segments(piece: Piece, path: Sequence[Node], layer: int, k_NGK: Tensor, v_NGK: Tensor) -> list[Segment]:
    """The keys and values of all tokens up to the piece's last, which are kept now if they will be looked at again."""
    nodes = [node.keys for node in path]
    segments = [(kept.keys[layer], kept.values[layer]) for kept in nodes[:-1] if isinstance(kept, KeysValues)]
    assert len(segments) == len(nodes) - 1, "an ancestor's keys are not kept"
    if not isinstance(own := nodes[-1], KeysValues):
        return [*segments, (k_NGK, v_NGK)]
    keys, values = (x[layer][: piece.stop - piece.node.start] for x in (own.keys, own.values))
    keys[piece.start - piece.node.start :], values[piece.start - piece.node.start :] = k_NGK, v_NGK
    return [*segments, (keys, values)]


def tiles(start: int, stop: int) -> list[tuple[int, int]]:
    """The positions cut where a tile begins."""
    cuts = [start, *range((start // TILE + 1) * TILE, stop, TILE), stop]
    return list(zip(cuts, cuts[1:]))


def wanted(pieces: Sequence[Piece]) -> tuple[list[int], list[int], list[list[int]]]:
    """The rows that reach the head, the token each is asked about, and where each answer goes."""
    rows, tokens, places, row = [], [], [], 0
    for piece in pieces:
        for position in sorted(piece.node.targets):
            if piece.start <= position < piece.stop:
                for token, where in piece.node.targets[position].items():
                    rows.append(row + position - piece.start)
                    tokens.append(token)
                    places.append(where)
        row += piece.stop - piece.start
    return rows, tokens, places
