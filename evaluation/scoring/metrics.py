"""From the log-likelihoods of a document's choices to predictions, scores, ties and margins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.scoring.documents import Document

# The metrics that pick a choice, and what they rank choices by.
NORMS = {
    "acc": "log-likelihood",
    "acc_norm": "log-likelihood a character",
    "acc_bytes": "log-likelihood a UTF-8 byte",
    "mc1": "log-likelihood",
}


def normed(document: Document, lls: Sequence[float], metric: str) -> list[float]:
    """What the choices are ranked by: nats, nats a character or nats a byte. A choice without text comes last."""
    if metric in ("acc_norm", "acc_bytes"):
        lengths = [c.characters if metric == "acc_norm" else c.bytes for c in document.choices]
        return [ll / length if length else -math.inf for ll, length in zip(lls, lengths)]
    return list(lls)


def best(values: Sequence[float]) -> int:
    """The first of the greatest, as everyone's argmax has it."""
    return max(range(len(values)), key=lambda i: (values[i], -i))


def margin(values: Sequence[float]) -> float | None:
    """How far the best is ahead of the second; 0 is a tie, None where the second has no text to be normed by."""
    second, first = sorted(values)[-2:]
    if first == second:
        return 0.0
    return None if math.isinf(second) else first - second


def mc2(lls: Sequence[float], truth: Sequence[float]) -> float:
    """The share of probability on the true choices, normalised over all choices (Lin et al. 2022).

    By log-sum-exp: exp(ll) itself is 0 below about -745, and a share of 0/0 is no number.
    """
    return math.exp(log_sum_exp([ll for ll, true in zip(lls, truth) if true]) - log_sum_exp(lls))


def log_sum_exp(values: Sequence[float]) -> float:
    """log of the sum of exponentials; -inf of nothing."""
    top = max(values, default=-math.inf)
    return top if math.isinf(top) else top + math.log(math.fsum(math.exp(v - top) for v in values))


def chance(document: Document, metric: str) -> float:
    """What a model that knows nothing is expected to score: the share of right choices."""
    if metric == "mc2":
        assert isinstance(document.gold, tuple)
        return sum(document.gold) / len(document.gold)
    return 1 / len(document.choices)


def document_scores(document: Document, lls: Sequence[float], metrics: Sequence[str]) -> dict[str, float]:
    """Each metric of one document: 1 or 0 for right or wrong, for mc2 a share."""
    scores = {}
    for metric in metrics:
        if metric == "mc2":
            assert isinstance(document.gold, tuple), "mc2 needs the truth of each choice"
            scores[metric] = mc2(lls, document.gold)
        else:
            scores[metric] = float(best(normed(document, lls, metric)) == document.gold)
    return scores


@dataclass(frozen=True)
class Mean:
    """A mean over documents and its standard error (sample deviation / sqrt(n); nan below two documents)."""

    value: float
    stderr: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        n = len(values)
        mean = math.fsum(values) / n
        if n < 2:
            return cls(mean, math.nan, n)
        return cls(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n), n)

    @classmethod
    def over(cls, means: Sequence[Mean]) -> Mean:
        """The plain mean of means, each weighing the same whatever its count."""
        n = len(means)
        return cls(
            math.fsum(m.value for m in means) / n,
            math.sqrt(math.fsum(m.stderr**2 for m in means)) / n,
            sum(m.count for m in means),
        )
