"""Which sequences share a microbatch, and which rank runs it: first-fit-decreasing by a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Microbatch:
    """Items one rank runs in one forward. `weight` is 0 for a stand-in that only keeps the ranks in step."""

    ids: tuple[int, ...]
    weight: float = 1.0


def first_fit_decreasing(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack items into bins of at most `budget` tokens: longest first, each into the first bin with room (Johnson 1973).

    Returns the bins as lists of item indices, every index exactly once. An item longer than the budget is our bug: the
    readers refuse it earlier.
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


def plan_microbatches(
    lengths: Sequence[int], tokens_per_microbatch: int, world_size: int = 1
) -> list[list[Microbatch]]:
    """Split one optimizer step's items over ranks and microbatches; the result is [rank][microbatch].

    Every rank gets the same number of microbatches, because a collective (ZeRO's gathers and reductions) waits for all
    of them: bins are split until they divide, and where nothing is left to split a rank repeats an item at weight 0.
    Every item has weight 1 exactly once. Depends on the arguments alone, so all ranks agree without talking.
    """
    bins = first_fit_decreasing(lengths, tokens_per_microbatch)

    def tokens(ids: Sequence[int]) -> int:
        return sum(lengths[i] for i in ids)

    while len(bins) % world_size and any(len(b) > 1 for b in bins):
        largest = max((b for b in bins if len(b) > 1), key=tokens)
        bins.remove(largest)
        halves: tuple[list[int], list[int]] = ([], [])
        for i in largest:  # longest first, each to the lighter half
            min(halves, key=tokens).append(i)
        bins += halves
    # Within a microbatch shortest first: attention on CPU takes neighbours of equal length in one call.
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
    lengths: Sequence[int], indices: Sequence[int], tokens_per_microbatch: int, largest: Callable[[int], int]
) -> list[Microbatch]:
    """Group this rank's sequences `indices` into microbatches; as many as on the rank that has most.

    `largest` returns the maximum over ranks. Missing microbatches are stand-ins of weight 0.
    """
    indices = list(indices)
    bins = first_fit_decreasing([lengths[s] for s in indices], tokens_per_microbatch)
    plan = [Microbatch(tuple(sorted((indices[i] for i in b), key=lambda s: lengths[s]))) for b in bins]
    stand_in = Microbatch((min(range(len(lengths)), key=lambda s: lengths[s]),), 0.0)
    return plan + [stand_in] * (largest(len(plan)) - len(plan))


def dealt(lengths: Sequence[int], rank: int, ranks: int) -> list[int]:
    """The places of a rank's sequences: the longest first, dealt out in turn, then back in order.

    So the sums of two ranks differ by no more than the longest sequence, and their numbers by no more than one.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return sorted(order[rank::ranks])
