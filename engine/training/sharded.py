"""Shard frozen weights over the ranks while they are not used, as ZeRO-3 does with trained ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

from engine.distributed.world import World


class ShardedWeights:
    """Whole at first. `release` keeps only this rank's part of each weight; `gather` makes them whole again."""

    def __init__(self, weights: Sequence[Tensor], world: World):
        self.weights, self.world = weights, world
        self.parts: list[Tensor] | None = None  # flat [ceil(N / ranks)] of each weight of N elements, while released
        self.shapes = [w.shape for w in weights]

    def release(self) -> None:
        """Free the other ranks' parts. The weights cannot be used until `gather`."""
        if self.parts is None and self.world.size > 1:
            self.parts = [self._part(w.data) for w in self.weights]
            for weight in self.weights:
                weight.data = weight.data.new_empty(0)

    def gather(self) -> None:
        """Restore the whole weights, bit for bit, on every rank. All ranks call it."""
        if self.parts is not None:
            for weight, part, shape in zip(self.weights, self.parts, self.shapes):
                weight.data = self.world.join(part)[: shape.numel()].view(shape)
            self.parts = None

    def _part(self, weight: Tensor) -> Tensor:
        size = -(-weight.numel() // self.world.size)
        flat = pad(weight.flatten(), (0, size * self.world.size - weight.numel()))
        return flat[self.world.rank * size : (self.world.rank + 1) * size].clone()
