"""Mixtures: several data files with weights, and which record of which file each step of a run draws.

The weights are shares of the records drawn. At every draw of a run, each file has given its share of the draws so far,
to within one record (Tijdeman 1980, "The chairman assignment problem"). A file is read in a shuffled order and shuffled
again when it is used up. An epoch is as many draws as all files have records together.
"""

from __future__ import annotations

import dataclasses
import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.seeds import batches, even_parts, shuffled

_ROUNDING = 1e-9  # of a deficit in records


@dataclass(frozen=True)
class Source:
    """A data file and its weight beside the others."""

    path: str
    weight: float = 1.0


def parse_sources(words: Sequence[str], flag: str = "--data") -> tuple[Source, ...]:
    """Parse FILE or FILE:WEIGHT of each word: a number after the last colon is the weight.

    A word that is the path of a file has no weight. UserError for a weight that is not finite and above 0, and for a
    file that is named twice.
    """
    sources, seen = [], set()
    for word in words:
        source = _source(word, flag)
        real = os.path.realpath(source.path)
        if real in seen:
            raise UserError(f"{flag} names {source.path} twice: name a file once, its weight says how often it is read")
        seen.add(real)
        sources.append(source)
    return tuple(sources)


def _source(word: str, flag: str) -> Source:
    path, colon, tail = word.rpartition(":")
    if not colon or os.path.lexists(word):
        return Source(word)
    try:
        weight = float(tail)
    except ValueError:
        return Source(word)
    if not 0 < weight < math.inf:
        raise UserError(f"{flag} {word}: the weight is {tail}, give a finite number above 0, or leave the file out")
    return Source(path, weight)


def names_of(sources: Sequence[Source]) -> str:
    """Return the path of one file, or the paths and weights of several."""
    if len(sources) == 1:
        return sources[0].path
    return ", ".join(f"{source.path}:{source.weight:g}" for source in sources)


def with_unique_ids(sources: Sequence[Source], parts: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return the records of each file; if an id is in two files, all ids get the name of their file before them."""
    ids = [record.id for part in parts for record in part]
    if len(set(ids)) == len(ids):
        return [list(part) for part in parts]
    names = [Path(source.path).name.split(".")[0] for source in sources]
    if len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, start=1)]
    return [
        [dataclasses.replace(record, id=f"{name}/{record.id}") for record in part] for name, part in zip(names, parts)
    ]


@dataclass(frozen=True)
class Mixture:
    """The records of a run: those of the first file, then those of the second, and so on."""

    sources: tuple[Source, ...]
    counts: tuple[int, ...]  # records of each file

    @classmethod
    def of_one(cls, count: int) -> Mixture:
        """Return the mixture of one list of records."""
        return cls((Source(""),), (count,))

    @property
    def shares(self) -> list[float]:
        """The share of each file in the draws; they add up to 1."""
        total = math.fsum(source.weight for source in self.sources)
        return [source.weight / total for source in self.sources]

    def batches(self, size: int, epochs: int, seed: int, *names: str | int, fewest: int = 1) -> list[list[int]]:
        """Return the records of each step, as engine.base.seeds.batches; those of one file are exactly the same."""
        count = sum(self.counts)
        if len(self.counts) == 1:
            return batches(count, size, epochs, seed, *names, fewest=fewest)
        drawn = self._draws(epochs * count, seed, *names)
        return [part for epoch in range(epochs) for part in even_parts(drawn[epoch * count :][:count], size, fewest)]

    def passes(self, epochs: int) -> int:
        """Return how often the records that are read most often are read in these epochs."""
        if len(self.counts) == 1:
            return epochs
        draws = epochs * sum(self.counts)
        return max(math.ceil((share * draws - _ROUNDING) / n) for share, n in zip(self.shares, self.counts))

    def rows(self, steps: Sequence[Sequence[int]]) -> dict[str, str]:
        """Return header rows that say what each of several files gives to these steps; none for one file."""
        if len(self.counts) == 1:
            return {}
        ends = list(accumulate(self.counts))
        drawn = Counter(bisect_right(ends, i) for step in steps for i in step)
        return {
            f"file {f + 1}": f"{source.path}: {count:,} records, {share:.1%} of those drawn, "
            f"read {drawn[f] / count:.2f} times"
            for f, (source, count, share) in enumerate(zip(self.sources, self.counts, self.shares))
        }

    def _draws(self, count: int, seed: int, *names: str | int) -> list[int]:
        firsts = [0, *accumulate(self.counts)]
        left: list[list[int]] = [[] for _ in self.counts]
        passes, drawn = [0] * len(self.counts), []
        for f in turns(self.shares, count):
            if not left[f]:
                left[f] = shuffled(self.counts[f], seed, *names, "file", f, passes[f])[::-1]
                passes[f] += 1
            drawn.append(firsts[f] + left[f].pop())
        return drawn


def turns(shares: Sequence[float], count: int, had: Sequence[int] = ()) -> list[int]:
    """Return whose turn each of `count` draws is. After every draw, each has share * draws to within 1.

    `had` are the draws that each has had before these. Of those that lack at least 1 / (2n - 2) of a draw, the next is
    the one that would soonest lack too much.
    """
    if len(shares) == 1:
        return [0] * count
    least = 1 / (2 * len(shares) - 2)
    had, order = list(had) or [0] * len(shares), []
    before = sum(had)
    for draw in range(before + 1, before + count + 1):
        lacks = [share * draw - n for share, n in zip(shares, had)]
        chosen = min(
            (f for f, lack in enumerate(lacks) if lack >= least - _ROUNDING),
            key=lambda f: (1 - least - lacks[f]) / shares[f],
        )
        had[chosen] += 1
        order.append(chosen)
    return order
