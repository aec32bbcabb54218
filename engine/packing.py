"""Group sequences into microbatches by token budget (first-fit-decreasing) and assign them to ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Microbatch:
    """The items of one forward on one rank. `weight` is 0 for a stand-in that keeps ranks in step."""

    indices: tuple[int, ...]
    weight: float = 1.0


def first_fit_decreasing(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack items into bins of at most `budget` tokens: longest first, each into the first bin with room (Johnson 1973).

    Returns lists of item indices, each index once. Items longer than the budget are refused earlier, by the readers.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        assert lengths[i] <= budget, f"item {i} has {lengths[i]} tokens, the budget is {budget}"
        for b, free in enumerate(room):
            if lengths[i] <= free:
                bins[b].append(i)
                room[b] -= lengths[i]
                break
        else:
            bins.append([i])
            room.append(budget - lengths[i])
    return bins


def pack_together(
    lengths: Sequence[int], indices: Sequence[int], budget: int, prompts: Sequence[tuple[int, int]] | None
) -> list[list[int]]:
    """Pack the given sequences into bins of at most `budget` tokens, those of one prompt together as far as they fit.

    `prompts` is that of a PackedBatch. Returns lists of sequences, shortest first.
    """
    units: list[list[int]] = []  # sequences that stay together
    tokens: list[int] = []  # of each unit
    newest: dict[int, int] = {}  # prompt -> its unit that may have room
    for s in indices:
        prompt = s if prompts is None else prompts[s][0]
        if prompt not in newest or tokens[newest[prompt]] + lengths[s] > budget:
            newest[prompt] = len(units)
            units.append([])
            tokens.append(0)
        units[newest[prompt]].append(s)
        tokens[newest[prompt]] += lengths[s]
    bins = first_fit_decreasing(tokens, budget)
    return [sorted((s for u in b for s in units[u]), key=lambda s: lengths[s]) for b in bins]


def plan_microbatches(
    lengths: Sequence[int], tokens_per_microbatch: int, world_size: int = 1
) -> list[list[Microbatch]]:
    """Split the items of an optimizer step over ranks and microbatches: [rank][microbatch].

    All ranks get the same number of microbatches, because ZeRO's collectives wait for all ranks: bins are split until
    they divide evenly, else a rank repeats an item with weight 0. Each item has weight 1 once. The result depends only
    on the arguments, so ranks agree without communication.
    """
    bins = first_fit_decreasing(lengths, tokens_per_microbatch)

    def tokens(ids: Sequence[int]) -> int:
        return sum(lengths[i] for i in ids)

    while len(bins) % world_size and any(len(b) > 1 for b in bins):
        largest = max((b for b in bins if len(b) > 1), key=tokens)
        bins.remove(largest)
        halves: tuple[list[int], list[int]] = ([], [])
        for i in largest:  # longest first, each to the shorter half
            min(halves, key=tokens).append(i)
        bins += halves
    # Shortest first within a microbatch: CPU attention takes neighbours of equal length in one call.
    microbatches = [
        Microbatch(tuple(sorted(b, key=lambda i: (lengths[i], i)))) for b in sorted(bins, key=lambda b: (-tokens(b), b))
    ]
    stand_in = Microbatch((min(range(len(lengths)), key=lambda i: lengths[i]),), 0.0)
    microbatches += [stand_in] * (-len(microbatches) % world_size)
    plan: list[list[Microbatch]] = [[] for _ in range(world_size)]
    for i in range(0, len(microbatches), world_size):
        row = microbatches[i : i + world_size]
        for rank, microbatch in enumerate(row if (i // world_size) % 2 == 0 else reversed(row)):
            plan[rank].append(microbatch)
    return plan


def rank_microbatches(
    lengths: Sequence[int],
    indices: Sequence[int],
    tokens_per_microbatch: int,
    largest: Callable[[int], int],
    prompts: Sequence[tuple[int, int]] | None = None,
) -> list[Microbatch]:
    """Group this rank's sequences `indices` into microbatches, as many as on the rank with most.

    `largest` returns the maximum over ranks. Missing microbatches are stand-ins of weight 0. Sequences of one prompt
    come together.
    """
    plan = [Microbatch(tuple(b)) for b in pack_together(lengths, indices, tokens_per_microbatch, prompts)]
    stand_in = Microbatch((min(range(len(lengths)), key=lambda s: lengths[s]),), 0.0)
    return plan + [stand_in] * (largest(len(plan)) - len(plan))


def shard_of(lengths: Sequence[int], rank: int, ranks: int) -> list[int]:
    """Return the indices of a rank's shard: sequences sorted by length, assigned in turn, then sorted by index.

    Total lengths of two ranks differ by at most the longest sequence, and counts by at most one.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return sorted(order[rank::ranks])
