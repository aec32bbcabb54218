"""Which records of a mixture each step of a run draws, computed when asked: memory does not grow with the records."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import overload

from engine.base.mixture import Mixture, turns
from engine.base.seeds import derive_seed

_ROUNDS = 6
_MASK = (1 << 64) - 1


class Draws(Sequence[list[int]]):
    """The records of each step, as those of Mixture.batches: shares of the draws by weight, each file shuffled.

    A file is shuffled again whenever it is used up, and gives each record once before that. Steps are equally long to
    one record. A step is kept as one number per file: how many records the file gave before it.
    """

    def __init__(self, mixture: Mixture, size: int, epochs: int, max_steps: int | None, seed: int, name: str):
        draws = epochs * sum(mixture.counts)
        self.mixture, self.seed, self.name = mixture, seed, name
        whole = -(-draws // size)
        self._shortest, self._longer = divmod(draws, whole)
        self._count = min(whole, max_steps or whole)
        self._firsts = [0, *accumulate(mixture.counts)]
        self._had = array("q")
        self._files = len(mixture.counts)
        had = [0] * self._files
        for step in range(self._count + 1):
            self._had.extend(had)
            if step < self._count:
                for f in self._turns(step, had):
                    had[f] += 1

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, step: int) -> list[int]: ...
    @overload
    def __getitem__(self, step: slice) -> list[list[int]]: ...
    def __getitem__(self, step: int | slice) -> list[int] | list[list[int]]:
        """Return the indices of a step's records: those of the first file come first, then those of the second."""
        if isinstance(step, slice):
            return [self[i] for i in range(self._count)[step]]
        step = range(self._count)[step]
        had, drawn = self.had(step), []
        for f in self._turns(step, had):
            turn, place = divmod(had[f], self.mixture.counts[f])
            key = derive_seed(self.seed, self.name, "file", f, turn)
            drawn.append(self._firsts[f] + shuffled_place(place, self.mixture.counts[f], key))
            had[f] += 1
        return drawn

    def had(self, step: int) -> list[int]:
        """Return how many records each file has given before a step; before step len(self), in the whole run."""
        return self._had[step * self._files : (step + 1) * self._files].tolist()

    def _turns(self, step: int, had: Sequence[int]) -> list[int]:
        return turns(self.mixture.shares, self._shortest + (step < self._longer), had)


def shuffled_place(place: int, count: int, key: int) -> int:
    """Return where a place of 0 to count - 1 goes in the shuffle with this key, without a list of all places.

    A Feistel network permutes the numbers below the next power of 4; one that is too large goes through it again.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mixed(right + (key ^ turn * 0x9E3779B97F4A7C15)) & low)
        place = left << half | right
        if place < count:
            return place


def _mixed(x: int) -> int:
    """Mix the bits of a number (the finaliser of splitmix64, Steele et al. 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    return x ^ x >> 31
