"""The layers of a decode step on tape: recorded once a rollout, run every step without Python between the kernels.

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
        """Raises tape.NotRecordable for a model that computes something in torch."""
        self.inputs = inputs
        with tape.record() as self.tape:
            self.trunk_SD, self.out_SD = inputs.run(inputs.max_rows, split)

    @classmethod
    @torch.no_grad()
    def of(cls, model, cache: KVCache, num_slots: int, pages_a_row: int, split: int) -> DecodeTape | None:
        """None where it cannot be had: on a GPU, without a compiler, or for a model whose rows need torch."""
        if model.head_weight.device.type == "cpu" and tape.can_record():
            with suppress(tape.NotRecordable):
                return cls(DecodeInputs(model, cache, int(min(num_slots, max_rows())), pages_a_row), split)
        return None

    def run(self, rows: int) -> tuple[Tensor, Tensor]:
        """Of the rows that the inputs were filled with, [S, D] behind the layers below `split` and behind the last;
        to be read before the next step."""
        self.tape.run(rows)
        return self.trunk_SD[:rows], self.out_SD[:rows]
