"""Statistics as sums and counts: added on the device, summed over ranks, divided once, read once a step."""

from __future__ import annotations

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
