"""Statistics as sums and counts: added on the device, summed over ranks, divided once, read once a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.distributed import World


class Metrics:
    """Running sums under the names users know. Nothing waits for the device until `read`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1) -> None:
        """Add a sum over `count` things. Every rank adds the same names in the same order."""
        total = total.detach().double() if isinstance(total, Tensor) else total
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0) + count

    def first(self, name: str, total: Tensor | float, count: Tensor | float = 1) -> None:
        """As `add`, for the first call since the last `read` only."""
        if name not in self._sums:
            self.add(name, total, count)

    def copy(self) -> Metrics:
        """These sums as they are now; what is added to one is not in the other."""
        other = Metrics()
        other._sums, other._counts = dict(self._sums), dict(self._counts)
        return other

    def read(self, world: World) -> dict[str, float]:
        """The means over all ranks; empties the sums. A name that counted nothing is left out."""
        names = list(self._sums)
        both = [[torch.as_tensor(x[n], dtype=torch.float64, device=world.device) for n in names]
                for x in (self._sums, self._counts)]  # fmt: skip
        self._sums, self._counts = {}, {}
        if not names:
            return {}
        sums, counts = world.sum(torch.stack([torch.stack(x) for x in both])).tolist()
        return {name: s / c for name, s, c in zip(names, sums, counts) if c}

    def state(self) -> dict[str, list[float]]:
        """[sum, count] of each name on this rank so far, as float64 holds them."""
        return {name: [float(self._sums[name]), float(self._counts[name])] for name in self._sums}

    @classmethod
    def of_states(cls, states: Sequence[Mapping[str, Sequence[float]]], world: World) -> Metrics:
        """What `state` returned on each rank, taken up again; all by the first rank if their number has changed."""
        if len(states) == world.size:
            mine = states[world.rank]
        else:
            here = float(world.is_first)
            mine = {name: [here * sum(s[name][i] for s in states) for i in (0, 1)] for name in states[0]}
        metrics = cls()
        for name, (total, count) in mine.items():
            # As tensors: a Python float added to a tensor of integers would make it float32.
            metrics._sums[name] = torch.tensor(total, dtype=torch.float64, device=world.device)
            metrics._counts[name] = torch.tensor(count, dtype=torch.float64, device=world.device)
        return metrics
