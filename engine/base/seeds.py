"""Seeds with names: every random stream of a run is derived from (seed, stream, step, ...) and from nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream of this name."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def shuffled(count: int, seed: int, *names: str | int) -> list[int]:
    """0 to count - 1 in the order of the stream of this name."""
    generator = torch.Generator().manual_seed(derive_seed(seed, *names))
    return torch.randperm(count, generator=generator).tolist()


def batches(count: int, size: int, epochs: int, seed: int, *names: str | int, fewest: int = 1) -> list[list[int]]:
    """The items of every step: each epoch uses every item once, in an order of its own, cut as `even_parts` says."""
    return [part for epoch in range(epochs) for part in even_parts(shuffled(count, seed, *names, epoch), size, fewest)]


def even_parts(items: Sequence[T], size: int, fewest: int = 1) -> list[list[T]]:
    """As few parts as hold at most `size` each, of equal length to one: a small rest would get a whole step's rate.

    A part with less than `fewest` is not made, though the others become longer than `size`.
    """
    count = min(-(-len(items) // size), max(1, len(items) // fewest))
    shortest, longer = divmod(len(items), count)
    ends = [shortest * i + min(i, longer) for i in range(count + 1)]
    return [list(items[start:end]) for start, end in zip(ends, ends[1:])]
