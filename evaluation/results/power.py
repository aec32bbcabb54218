"""How many documents it takes to see a difference between two models: two-sided test at 5 %, power 80 %."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.results.compare import Z95, scores_by_item
from evaluation.results.runs import Runs

# The normal distribution's points for 5 % on two sides and for a power of 80 %: 1.9600 + 0.8416, squared.
FACTOR = (Z95 + 0.8416212335729143) ** 2
# The variance of a difference of two 0/1 scores, if both models are right half of the time, independently.
UNPAIRED = 0.5
DIFFERENCE = 0.01  # the difference that the lines speak of


def documents_needed(variance: float, difference: float = DIFFERENCE) -> int:
    """Return the number of documents on which the test finds `difference` (0.01 is 1 %) four times out of five.

    variance  of the difference of the two models' scores on one document
    """
    return math.ceil(FACTOR * variance / difference**2)


def smallest_difference(variance: float, documents: int) -> float:
    """Return the difference that the test finds four times out of five on this number of documents; 0.01 is 1 %."""
    return math.sqrt(FACTOR * variance / documents)


def disagreement(a: Mapping[str, float], b: Mapping[str, float]) -> float | None:
    """Return the mean squared difference of two models' scores over the documents that both have; None without one.

    For scores of 0 and 1 it is the share of documents on which the models disagree. It is the variance of the
    difference plus the squared mean difference, which is small where many documents are needed.
    """
    squares = [(b[key] - a[key]) ** 2 for key in a if key in b]
    return math.fsum(squares) / len(squares) if squares else None


@dataclass(frozen=True)
class Power:
    """What a task in one language can show.

    models    "b - a", or "" for any two models, which nothing pairs
    variance  of the difference of their scores on one document
    count     of documents
    """

    task: str
    metric: str
    language: str
    models: str
    variance: float
    count: int


def build_power(runs: Runs) -> list[Power]:
    """Return the power of each task's first metric: the first model beside each other one, or one model alone."""
    rows = []
    first, *others = runs.models
    for (task, language), cell in runs.cells[first].items():
        metric, found = next(iter(cell.metrics)), []
        scores = scores_by_item(cell.records, metric)
        for name in others:
            if other := runs.cells[name].get((task, language)):
                theirs = scores_by_item(other.records, metric)
                share, common = disagreement(scores, theirs), len(scores.keys() & theirs.keys())
                if share is not None:
                    found.append(Power(task, metric, language, f"{name} - {first}", share, common))
        rows += found or [Power(task, metric, language, "", UNPAIRED, len(cell.records))]
    return rows


def power_line(name: str, documents: int) -> str:
    """Return what a task of this many documents can show, before any model has answered them."""
    return (
        f"{name}: to see a difference of 1 % here you need about {rounded(documents_needed(UNPAIRED))} documents "
        f"(two models, unpaired, at worst); these {documents:,} show {shown(UNPAIRED, documents)}"
    )


def shown(variance: float, documents: int) -> str:
    """Return the differences that the documents show in words: "3.7 % or more", or "none" above 100 %."""
    smallest = smallest_difference(variance, documents)
    return f"{100 * smallest:.1f} % or more" if smallest <= 1 else "none"


def rounded(count: int) -> str:
    """Return a count with three digits that count, such as "39,200"."""
    return f"{round(count, 3 - len(str(count))):,}"
