"""Which rank scores which documents: neighbours in the tree of prefixes stay together, the work is spread evenly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from evaluation.scoring.documents import Document
from evaluation.scoring.prefix_tree import common_prefix


def in_tree_order(documents: Sequence[Document]) -> list[int]:
    """The documents' places, those whose contexts share a beginning next to each other."""
    return sorted(range(len(documents)), key=lambda i: documents[i].choices[0].context_ids)


def shares(documents: Sequence[Document], size: int) -> list[list[int]]:
    """The places of each rank's documents: runs of the tree's order with about the same number of new tokens."""
    order = in_tree_order(documents)
    before, costs = np.empty(0, dtype=np.int64), []
    for i in order:
        context = np.asarray(documents[i].choices[0].context_ids)
        continuations = sum(len(choice.continuation_ids) for choice in documents[i].choices)
        costs.append(len(context) - common_prefix(before, context) + continuations)
        before = context
    total = sum(costs)
    parts: list[list[int]] = [[] for _ in range(size)]
    for i, cost, up_to in zip(order, costs, accumulate(costs)):
        # By the middle of a document's stretch of work: the first one, which has the shared prefix too, may be long.
        parts[min(size - 1, int((up_to - cost / 2) * size / total))].append(i)
    return parts
