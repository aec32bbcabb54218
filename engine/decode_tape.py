"""The layers of a decode step on tape: recorded once a rollout, run every step without Python between the kernels.

Shapes: S rows, D model, B pages a row, R groups of neighbouring rows.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.kv_cache import KVCache, places
from kernels import tape
from kernels.skinny_linear import MAX_ROWS


class DecodeTape:
    """Inputs at a fixed place, and two tapes over them: the layers below `split`, whose output is the trunk's, and the
    others."""

    def __init__(self, model, cache: KVCache, max_rows: int, pages_a_row: int, split: int):
        """Raises tape.NotRecordable for a model that computes something in torch."""
        self.model, self.page_size, self.max_rows = model, cache.page_size, max_rows
        self.table_SB = torch.zeros(max_rows, pages_a_row, dtype=torch.int32)
        position_S = torch.zeros(max_rows, dtype=torch.int64)
        self.places = places(self.table_SB, position_S, cache.page_size)
        self.cu_groups = torch.zeros(max_rows + 1, dtype=torch.int32)
        self.shared_R = torch.zeros(max_rows, dtype=torch.int32)
        self.rotation = model.rotation(position_S)
        self.h_SD = torch.zeros(max_rows, model.hidden_size)
        attend = cache.decode_at(self.table_SB, *self.places, self.cu_groups, self.shared_R)
        batch = PackedBatch.of_singles(position_S, position_S)
        with tape.record() as self.lower:
            self.trunk_SD = model.run(self.h_SD, batch, 0, split, attend, self.rotation)
        with tape.record() as self.upper:
            self.out_SD = model.run(self.trunk_SD, batch, split, model.num_layers, attend, self.rotation)

    @classmethod
    @torch.no_grad()
    def of(cls, model, cache: KVCache, num_slots: int, pages_a_row: int, split: int) -> DecodeTape | None:
        """None where it cannot be had: on a GPU, without a compiler, or for a model whose rows need torch."""
        if model.head_weight.device.type == "cpu" and tape.can_record():
            with suppress(tape.NotRecordable):
                return cls(model, cache, min(num_slots, MAX_ROWS), pages_a_row, split)
        return None

    def fill(self, h_SD: Tensor, position_S: Tensor, table_SB: Tensor, cu_groups: Tensor, shared_R: Tensor) -> None:
        """The rows of a step; arguments as of `KVCache.decode`, h_SD their embeddings."""
        rows, width = table_SB.shape
        self.h_SD[:rows] = h_SD
        self.table_SB[:rows, :width] = table_SB
        self.cu_groups[: len(cu_groups)] = cu_groups
        self.shared_R[: len(shared_R)] = shared_R
        for kept, new in zip(self.places, places(table_SB, position_S, self.page_size)):
            kept[:rows] = new
        if self.rotation is not None:
            for kept, new in zip(self.rotation, self.model.rotation(position_S)):
                kept[:rows] = new

    def run_trunk(self, rows: int) -> Tensor:
        """[S, D] behind the layers below the split; to be read before the next step."""
        self.lower.run(rows)
        return self.trunk_SD[:rows]

    def run_top(self, rows: int) -> Tensor:
        """[S, D] behind the last layer; to be read before the next step."""
        self.upper.run(rows)
        return self.out_SD[:rows]
