"""The loss scale of float16: it multiplies the loss, so that small gradients do not round to zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.distributed.world import World

FIRST, SMALLEST, LARGEST = 2.0**16, 1.0, 2.0**24
GROWTH = 1_000  # steps without an overflow, after which it doubles


class LossScale:
    """A power of two: halved when a gradient overflows, doubled after GROWTH good steps (Micikevicius et al. 2018).

    A step whose gradient overflows is computed again with the smaller scale: no batch is left out.
    """

    def __init__(self, world: World):
        self.world, self.value, self.good = world, FIRST, 0
        self._refused = torch.tensor(False, device=world.device)

    def saw(self, is_good: Tensor) -> None:
        """Take in whether a loss of the step (bool scalar) is finite and wanted."""
        self._refused |= ~is_good

    def overflowed(self, norm: float) -> bool:
        """Adapt to a step's gradient norm. Returns whether the step overflowed and can be tried with a smaller scale.

        It cannot if a loss on any rank was itself not finite or not wanted, nor at the smallest scale.
        """
        refused = False
        if math.isfinite(norm):
            self.good += 1
            if self.good == GROWTH:
                self.value, self.good = min(2 * self.value, LARGEST), 0
        else:
            refused = bool(self.world.max(int(self._refused))) or self.value == SMALLEST
            self.value, self.good = self.value if refused else self.value / 2, 0
        self._refused.fill_(False)
        return not math.isfinite(norm) and not refused

    def state(self) -> Tensor:
        """Return float32 [2]: what a checkpoint keeps."""
        return torch.tensor([self.value, self.good])

    def restore(self, state: Tensor) -> None:
        value, good = state.tolist()
        self.value, self.good = value, int(good)
