"""Fixed buffers for the inputs of a decode step, so that a recorded step can run again on other rows.

Shapes: S rows, D model, B pages per row, R groups of neighbouring rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.generation.kv_cache import KVCache, places


class DecodeInputs:
    """Buffers for max_rows rows; runs a model's layers over the first ones.

    With a spare page in the cache, a recording may run more rows than a step has: the others are blank, each a token at
    position 0 of that page.
    """

    def __init__(self, model, cache: KVCache, max_rows: int, pages_a_row: int):
        self.model, self.cache, self.max_rows = model, cache, max_rows
        weight, device = model.head_weight, model.head_weight.device
        self.table_SB = torch.full((max_rows, pages_a_row), cache.spare_page or 0, dtype=torch.int32, device=device)
        position_S = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.places = places(self.table_SB, position_S, cache.page_size)
        self.cu_groups = torch.full((max_rows + 1,), max_rows, dtype=torch.int32, device=device)
        self.shared_R = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.rotations = model.rotations(position_S)
        self.h_SD = torch.zeros(max_rows, model.hidden_size, dtype=weight.dtype, device=device)
        self._singles = PackedBatch.of_singles(position_S, position_S)  # only the lengths of its sequences are used
        self._filled = 0
        # Whether `run` looks for pages that rows share. A tape serves steps with and without them, a graph one kind.
        self.sharing = cache.spare_page is None

    def fill(
        self, h_SD: Tensor, position_S: Tensor, table_SB: Tensor, cu_groups: Tensor, shared_R: Tensor, sharing: bool
    ) -> None:
        """Copy in the rows of a step; arguments as in `KVCache.decode`, h_SD are their embeddings.

        sharing: whether any of shared_R is not 0.
        """
        (rows, width), groups = table_SB.shape, len(shared_R)
        if self.cache.spare_page is not None and rows < self._filled:  # the pages of removed rows have new owners
            left = slice(rows, self._filled)
            self.table_SB[left] = self.cache.spare_page
            for kept, blank in zip(self.places, (self.cache.spare_page, 0, 1)):
                kept[left] = blank
        self._filled, self.sharing = rows, sharing
        self.h_SD[:rows] = h_SD
        self.table_SB[:rows, :width] = table_SB
        self.cu_groups[: groups + 1] = cu_groups
        self.cu_groups[groups + 1 :] = self.max_rows  # the blank rows are one group that shares nothing
        self.shared_R[:groups] = shared_R
        self.shared_R[groups:] = 0
        for kept, new in zip(self.places, places(table_SB, position_S, self.cache.page_size)):
            kept[:rows] = new
        new_rotations = self.model.rotations(position_S)
        for rotary, rotation in self.rotations.items():
            for kept, new in zip(rotation, new_rotations[rotary]):
                kept[:rows] = new

    def run(self, rows: int, split: int) -> tuple[Tensor, Tensor]:
        """Run the layers over the first `rows` rows; return [S, D] after those below `split` and after the last."""
        groups = (self.cu_groups[: rows + 1], self.shared_R[:rows]) if self.sharing else (None, None)
        attend = self.cache.decode_at(self.table_SB[:rows], *(x[:rows] for x in self.places), *groups)
        rotations = {rotary: (cos[:rows], sin[:rows]) for rotary, (cos, sin) in self.rotations.items()}
        trunk_SD = self.model.run(self.h_SD[:rows], self._singles, 0, split, attend, rotations)
        return trunk_SD, self.model.run(trunk_SD, self._singles, split, self.model.num_layers, attend, rotations)
