"""Seeds with names: every random stream of a run is derived from (seed, stream, step, ...) and from nothing else."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream of this name."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def shuffled(count: int, seed: int, *names: str | int) -> list[int]:
    """0 to count - 1 in the order of the stream of this name."""
    generator = torch.Generator().manual_seed(derive_seed(seed, *names))
    return torch.randperm(count, generator=generator).tolist()


def batches(count: int, size: int, epochs: int, seed: int, *names: str | int) -> list[list[int]]:
    """The items of every step: each epoch uses every item once, in an order of its own; its last batch may be short."""
    steps = []
    for epoch in range(epochs):
        order = shuffled(count, seed, *names, epoch)
        steps += [order[i : i + size] for i in range(0, count, size)]
    return steps
