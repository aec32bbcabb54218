"""Means as sums and counts, and maxima: kept on the device, reduced over ranks once per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.batch import on_device
from engine.distributed.world import World


class Metrics:
    """Running sums by metric name. The host does not wait for the device until `read`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, Tensor | float] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1) -> None:
        """Add a sum over `count` items. All ranks add the same names in the same order."""
        total = total.detach().double() if isinstance(total, Tensor) else total
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0) + count

    def first(self, name: str, total: Tensor | float, count: Tensor | float = 1) -> None:
        """As `add`, but only for the first call after a `read`."""
        if name not in self._sums:
            self.add(name, total, count)

    def copy(self) -> Metrics:
        """Return an independent copy."""
        other = Metrics()
        other._sums, other._counts, other._maxima = dict(self._sums), dict(self._counts), dict(self._maxima)
        return other

    def maximum(self, name: str, value: Tensor) -> None:
        """Update a maximum with a scalar. All ranks use the same names in the same order."""
        value = value.detach().double()
        self._maxima[name] = torch.maximum(self._maxima[name], value) if name in self._maxima else value

    def read(self, world: World) -> dict[str, float]:
        """Return the means and maxima over all ranks, and clear them. A name with count 0 is left out."""
        names = list(self._sums)
        both = [x[n] for x in (self._sums, self._counts) for n in names]
        numbers = on_device([0.0 if isinstance(x, Tensor) else x for x in both], torch.float64, world.device)
        maxima, self._sums, self._counts, self._maxima = self._maxima, {}, {}, {}
        if not names:
            return {}
        both = [x.to(number) if isinstance(x, Tensor) else number for x, number in zip(both, numbers)]
        sums, counts = world.sum(torch.stack(both).view(2, -1)).tolist()
        means = {name: s / c for name, s, c in zip(names, sums, counts) if c}
        return means | (dict(zip(maxima, world.largest(torch.stack([*maxima.values()])).tolist())) if maxima else {})

    def state(self) -> dict[str, list[float]]:
        """Return [sum, count] of each mean on this rank, and [maximum] of each maximum, as float64."""
        sums = {name: [float(self._sums[name]), float(self._counts[name])] for name in self._sums}
        return sums | {name: [float(value)] for name, value in self._maxima.items()}

    @classmethod
    def of_states(cls, states: Sequence[Mapping[str, Sequence[float]]], world: World) -> Metrics:
        """Restore what `state` returned on each rank. If the number of ranks has changed, the first rank takes all."""
        if len(states) == world.size:
            mine = states[world.rank]
        else:
            here = float(world.is_first)
            mine = {
                name: [max(s[name][0] for s in states)]
                if len(kept) == 1
                else [here * sum(s[name][i] for s in states) for i in (0, 1)]
                for name, kept in states[0].items()
            }
        metrics = cls()
        for name, kept in mine.items():
            # Tensors: a Python float plus an integer tensor would be float32.
            kept = [torch.tensor(x, dtype=torch.float64, device=world.device) for x in kept]
            if len(kept) == 1:
                metrics._maxima[name] = kept[0]
            else:
                metrics._sums[name], metrics._counts[name] = kept
        return metrics
