"""Compare two models on the same documents: paired differences with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.results.summary import Record
from evaluation.scoring.metrics import Z95, Mean


@dataclass(frozen=True)
class Difference:
    """The mean of b - a over the `count` documents that both models have, and its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def is_significant(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def paired_difference(a: Mapping[str, float], b: Mapping[str, float]) -> Difference | None:
    """Return the mean difference b - a of two models' scores by document, over the documents that both have.

    The interval is the mean +- 1.96 standard errors of the differences. Pairing makes it narrow: how hard a document is
    cancels out. Return None for fewer than two common documents.
    """
    differences = [b[key] - a[key] for key in a if key in b]
    if len(differences) < 2:
        return None
    mean = Mean.of(differences)
    return Difference(mean.value, mean.value - Z95 * mean.stderr, mean.value + Z95 * mean.stderr, mean.count)


def scores_by_item(records: Sequence[Record], metric: str) -> dict[str, float]:
    """Return record id -> score. Translations of one item share its id."""
    return {str(record["id"]): record["scores"][metric] for record in records}


def has_item_ids(records: Sequence[Record]) -> bool:
    """Return whether the records have ids of their own. A row number means another question in another language."""
    return any(str(record["id"]) != str(record["index"]) for record in records)


def common_items(sides: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the items that are in all mappings, in the order of the first mapping."""
    first, *others = sides
    return [item for item in first if all(item in other for other in others)]


def mean_over_languages(languages: Sequence[Mapping[str, float]], items: Sequence[str]) -> dict[str, float]:
    """Return item -> its mean score over the languages.

    The interval needs independent scores, and the scores of one item in several languages are not.
    """
    return {item: math.fsum(scores[item] for scores in languages) / len(languages) for item in items}
