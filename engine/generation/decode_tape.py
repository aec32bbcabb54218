"""A tape of a decode step's native calls: recorded once per rollout, run every step without Python between kernels.

Shapes: S rows, D model.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from engine.generation.decode_inputs import DecodeInputs
from engine.generation.kv_cache import KVCache
from kernels.common import tape
from kernels.skinny_linear import max_rows


class DecodeTape:
    """One tape for any number of rows."""

    def __init__(self, inputs: DecodeInputs, split: int):
        """Raises tape.NotRecordable for a model that computes something with torch."""
        self.inputs = inputs
        with tape.record() as self.tape:
            self.trunk_SD, self.out_SD = inputs.run(inputs.max_rows, split)

    @classmethod
    @torch.no_grad()
    def of(cls, model, cache: KVCache, num_slots: int, pages_a_row: int, split: int) -> DecodeTape | None:
        """Return None on a GPU, without a compiler, or for a model that needs torch for its rows."""
        if model.head_weight.device.type == "cpu" and tape.can_record():
            with suppress(tape.NotRecordable):
                return cls(DecodeInputs(model, cache, int(min(num_slots, max_rows())), pages_a_row), split)
        return None

    def run(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the hidden states after the layers below `split` and after the last layer, [S, D] each.

        The next step overwrites both.
        """
        self.tape.run(rows)
        return self.trunk_SD[:rows], self.out_SD[:rows]
