"""Named seeds: every random stream of a run depends only on (seed, stream, step, ...)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def derive_seed(seed: int, *names: str | int) -> int:
    """Return the 63-bit seed of a named stream."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def shuffled(count: int, seed: int, *names: str | int) -> list[int]:
    """Return 0 to count - 1, shuffled by a named stream."""
    generator = torch.Generator().manual_seed(derive_seed(seed, *names))
    return torch.randperm(count, generator=generator).tolist()


def batches(count: int, size: int, epochs: int, seed: int, *names: str | int, fewest: int = 1) -> list[list[int]]:
    """Return the items of each step: every epoch is shuffled and split by `even_parts`, using each item once."""
    return [part for epoch in range(epochs) for part in even_parts(shuffled(count, seed, *names, epoch), size, fewest)]


def even_parts(items: Sequence[T], size: int, fewest: int = 1) -> list[list[T]]:
    """Split into the fewest parts of at most `size`, of equal length to one (a short step would get the full rate).

    No part has fewer than `fewest`, even if others become longer than `size`.
    """
    count = min(-(-len(items) // size), max(1, len(items) // fewest))
    shortest, longer = divmod(len(items), count)
    ends = [shortest * i + min(i, longer) for i in range(count + 1)]
    return [list(items[start:end]) for start, end in zip(ends, ends[1:])]
