"""Shard documents over ranks: equal work for each rank, and documents with a common prefix on the same rank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from evaluation.scoring.documents import Document
from evaluation.scoring.prefix_tree import common_prefix


def in_tree_order(documents: Sequence[Document]) -> list[int]:
    """Return the indices of the documents, sorted so that contexts with a common prefix are neighbours."""
    return sorted(range(len(documents)), key=lambda i: documents[i].choices[0].context_ids)


def shard(documents: Sequence[Document], num_ranks: int) -> list[list[int]]:
    """Return the indices of each rank's documents: consecutive in tree order, with about equally many new tokens."""
    order = in_tree_order(documents)
    before, costs = np.empty(0, dtype=np.int64), []
    for i in order:
        context = np.asarray(documents[i].choices[0].context_ids)
        continuations = sum(len(choice.continuation_ids) for choice in documents[i].choices)
        costs.append(len(context) - common_prefix(before, context) + continuations)
        before = context
    total = sum(costs)
    shards: list[list[int]] = [[] for _ in range(num_ranks)]
    for i, cost, end in zip(order, costs, accumulate(costs)):
        # Assign by the middle of the document's work: the first document pays for the shared prefix and may be long.
        shards[min(num_ranks - 1, int((end - cost / 2) * num_ranks / total))].append(i)
    return shards
