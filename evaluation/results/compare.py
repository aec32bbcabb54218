"""Two models on the same documents: paired differences with confidence intervals, in one language and over several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.results.summary import Record
from evaluation.scoring.metrics import Mean

Z95 = 1.959963984540054  # the normal distribution's two-sided 95 % point


@dataclass(frozen=True)
class Difference:
    """The mean of b - a over `count` documents that both have, and its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def is_clear(self) -> bool:
        """Zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> Difference | None:
    """Of scores by document. Differences of the same document are averaged: what makes it hard for both cancels out.

    The interval is mean +- 1.96 standard errors of the differences. None with fewer than two documents in common.
    """
    differences = [b[key] - a[key] for key in a if key in b]
    if len(differences) < 2:
        return None
    mean = Mean.of(differences)
    return Difference(mean.value, mean.value - Z95 * mean.stderr, mean.value + Z95 * mean.stderr, mean.count)


def scores_by_item(records: Sequence[Record], metric: str) -> dict[str, float]:
    """The score of each document by the record's id, which the translations of an item share."""
    return {str(record["id"]): record["scores"][metric] for record in records}


def has_items(records: Sequence[Record]) -> bool:
    """Whether documents have ids at all, or are known by their row alone, which means another question elsewhere."""
    return any(str(record["id"]) != str(record["index"]) for record in records)


def common_items(sides: Sequence[Mapping[str, float]]) -> list[str]:
    """The items that every side has, in the order of the first."""
    first, *others = sides
    return [item for item in first if all(item in other for other in others)]


def over_languages(languages: Sequence[Mapping[str, float]], items: Sequence[str]) -> dict[str, float]:
    """Each item's mean score over the languages: an item's answers in several languages are not independent."""
    return {item: math.fsum(scores[item] for scores in languages) / len(languages) for item in items}
