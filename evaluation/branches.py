"""Branches of a prefix tree through a model: new tokens attend to the kept keys of their ancestors and to themselves.

Shapes: T rows of one forward, D model, H heads, G key/value heads, K head size, L layers, P positions of a path.

The log-probabilities of a token must not depend on what shares its forward, on where its node happens to begin, or on
how a long node is cut. On one CPU thread that takes three rules, found by measurement (MKL in torch 2.13, AVX-512):
 - a row of a float32 matrix product has the same bits in every product of 16 rows or more, wherever it stands, and
   others below; and with 96 rows or fewer the models may take kernels of their own: so a forward has a multiple of
   32 rows, and at least 128. Several threads inside a product break this (a product that
   sums over 2,048 is then cut along the sum): threads run whole forwards side by side instead.
 - element-wise kernels treat the end of an array apart: a multiple of 32 rows has no such end.
 - attention: queries are cut where tiles of 256 positions, counted from the root, begin; the queries of a tile always
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
from evaluation.prefix_tree import Node
from kernels.attention.fold import EXTRA, fold_key, fold_query
from kernels.linear_logprob import linear_logprob

ROWS = 32  # a forward on a CPU has a multiple of these, and a call of the head exactly so many
FEWEST_ROWS = 128  # a forward on a CPU has at least so many
QUERIES = 16  # a call of attention has a multiple of these
GPU_ROWS = 1024  # a forward on a GPU has exactly so many
TILE = 256  # positions


@dataclass(frozen=True)
class Piece:
    """Positions start to stop-1 of a node; all before them are computed."""

    node: Node
    start: int
    stop: int


@dataclass(frozen=True)
class KeysValues:
    """The keys [L, G, n, K or K + 8] and values [L, G, n, K] of a node's n tokens."""

    keys: Tensor
    values: Tensor


class Branches:
    """One thread's way through the tree: the keys and values of one path from the root, and the forward over pieces."""

    def __init__(self, model: Any, num_positions: int):
        weight = model.head_weight
        self.model, self.device, self.dtype = model, weight.device, weight.dtype
        self.has_slopes = model.config.model_type == "bloom"
        self.key_size = model.head_size + (EXTRA if self.has_slopes else 0)
        self.size = -(-num_positions // TILE) * TILE
        shape = (model.num_layers, model.num_kv_heads, self.size, self.key_size)
        # Zeros, not empty: a masked key has weight 0, and 0 times a NaN that lay in memory is NaN.
        self.keys_LGPK = torch.zeros(shape, device=self.device, dtype=self.dtype)
        self.values_LGPK = torch.zeros_like(self.keys_LGPK)
        self.path: list[Node] = []
        self.filled = 0  # positions of the path that are in place
        mask = torch.zeros(TILE + QUERIES, self.size, device=self.device, dtype=self.dtype)
        mask[:TILE, self.size - TILE :].fill_(float("-inf")).triu_(1)
        self.mask = mask  # its last columns serve every tile, being counted from the tile's end

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> tuple[list[list[int]], Tensor]:
        """Compute pieces of different nodes whose ancestors are kept.

        Returns what the nodes' targets ask for: where each log-probability goes, and the float32 log-probabilities.
        """
        for piece in pieces:
            if piece.node.kept and piece.node.keys is None:
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
        return KeysValues(
            torch.empty(*shape, self.key_size, device=self.device, dtype=self.dtype),
            torch.empty(*shape, self.model.head_size, device=self.device, dtype=self.dtype),
        )

    def _walk_to(self, piece: Piece) -> list[Piece]:
        """Which parts of ancestors must be put in place before the piece; the path is then the piece's own."""
        path = piece.node.path
        right = sum(1 for have, want in zip(self.path, path) if have is want)
        right_up_to = min(self.filled, path[right - 1].stop if right else 0)
        missing = [
            Piece(node, max(node.start, right_up_to), min(node.stop, piece.start))
            for node in path
            if min(node.stop, piece.start) > max(node.start, right_up_to)
        ]
        self.path, self.filled = path, piece.stop
        return missing

    def _attend(self, pieces: Sequence[Piece], positions_T: Tensor) -> Attend:
        scale, size = self.model.head_size**-0.5, self.model.head_size
        plan = [(piece, self._walk_to(piece)) for piece in pieces]

        def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, slopes_H: Tensor | None) -> Tensor:
            out_THK = torch.empty_like(q_THK)
            if slopes_H is not None:
                q_THK, k_TGK = fold_query(q_THK, slopes_H, scale), fold_key(k_TGK, positions_T)
            q_THK = pad(q_THK, (0, 0, 0, 0, 0, QUERIES))  # a tile's rows are read up to a multiple of QUERIES
            keys_GPK, values_GPK = self.keys_LGPK[layer], self.values_LGPK[layer]
            row = 0
            for piece, missing in plan:
                for part in missing:
                    kept, first = part.node.keys, part.node.start
                    assert isinstance(kept, KeysValues)
                    there, here = slice(part.start, part.stop), slice(part.start - first, part.stop - first)
                    keys_GPK[:, there] = kept.keys[layer][:, here]
                    values_GPK[:, there, :size] = kept.values[layer][:, here]
                count = piece.stop - piece.start
                k_GNK, v_GNK = (x[row : row + count].transpose(0, 1) for x in (k_TGK, v_TGK))
                keys_GPK[:, piece.start : piece.stop] = k_GNK
                values_GPK[:, piece.start : piece.stop, :size] = v_GNK
                if isinstance(kept := piece.node.keys, KeysValues):
                    here = slice(piece.start - piece.node.start, piece.stop - piece.node.start)
                    kept.keys[layer][:, here] = k_GNK
                    kept.values[layer][:, here] = v_GNK
                for start, stop in tiles(piece.start, piece.stop):
                    at, n = row + start - piece.start, stop - start
                    q_NHK = q_THK[at : at + n + -n % QUERIES]
                    out_THK[at : at + n] = self._tile(q_NHK, start, keys_GPK, values_GPK)[:n]
                row += count
            out_THK[row:] = 0  # rows that fill up
            return out_THK

        return attend

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
        out_NHK = out_GNK.unflatten(1, (shared, count)).permute(2, 0, 1, 3).flatten(1, 2)
        return out_NHK[..., : self.model.head_size]


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
