"""Compute predictions, scores, ties and margins from the log-likelihoods of a document's choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.scoring.documents import Document

# The metrics that pick a choice, and the value that they rank choices by.
NORMS = {
    "acc": "log-likelihood",
    "acc_norm": "log-likelihood per character",
    "acc_bytes": "log-likelihood per UTF-8 byte",
    "mc1": "log-likelihood",
    "pct_stereotype": "log-likelihood",
}


def normalized(document: Document, lls: Sequence[float], metric: str) -> list[float]:
    """Return the value that the metric ranks each choice by: nats, nats per character or nats per byte.

    A choice without text gets -inf per character and per byte.
    """
    if metric in ("acc_norm", "acc_bytes"):
        lengths = [c.characters if metric == "acc_norm" else c.bytes for c in document.choices]
        return [ll / length if length else -math.inf for ll, length in zip(lls, lengths)]
    return list(lls)


def argmax(values: Sequence[float]) -> int:
    """Return the index of the largest value, the first one of equals."""
    return max(range(len(values)), key=lambda i: (values[i], -i))


def margin(values: Sequence[float]) -> float | None:
    """Return the largest value minus the second largest: 0 for a tie, None if the second is -inf."""
    second, first = sorted(values)[-2:]
    if first == second:
        return 0.0
    return None if math.isinf(second) else first - second


def mc2(lls: Sequence[float], truth: Sequence[float]) -> float:
    """Return the share of the probability of all choices that is on the true ones (Lin et al. 2022).

    Uses log-sum-exp, because exp(ll) is 0 below about -745 and the share would be 0/0.
    """
    return math.exp(log_sum_exp([ll for ll, true in zip(lls, truth) if true]) - log_sum_exp(lls))


def log_sum_exp(values: Sequence[float]) -> float:
    """Return the log of the sum of exponentials; -inf for no values."""
    top = max(values, default=-math.inf)
    return top if math.isinf(top) else top + math.log(math.fsum(math.exp(v - top) for v in values))


def chance(document: Document, metric: str) -> float:
    """Return the expected score of guessing: the share of right choices."""
    if metric == "mc2":
        assert isinstance(document.gold, tuple)
        return sum(document.gold) / len(document.gold)
    return 1 / len(document.choices)


def document_scores(document: Document, lls: Sequence[float], metrics: Sequence[str]) -> dict[str, float]:
    """Return metric -> score of one document: 1 for right, 0 for wrong, for mc2 a share of probability.

    Of a pair whose first sentence is the stereotyped one, pct_stereotype is 1 if it is likelier, 0 also for a tie, as
    in lm-eval; likelihood_diff is the distance of the two log-likelihoods in nats.
    """
    scores = {}
    for metric in metrics:
        if metric == "mc2":
            assert isinstance(document.gold, tuple), "mc2 needs the truth of each choice"
            scores[metric] = mc2(lls, document.gold)
        elif metric == "pct_stereotype":
            scores[metric] = float(lls[0] > lls[1])
        elif metric == "likelihood_diff":
            scores[metric] = abs(lls[0] - lls[1])
        else:
            scores[metric] = float(argmax(normalized(document, lls, metric)) == document.gold)
    return scores


Z95 = 1.959963984540054  # the normal distribution's two-sided 95 % point


@dataclass(frozen=True)
class Mean:
    """A mean over `count` documents and its standard error.

    The error is the sample standard deviation / sqrt(count), and nan for a single document.
    """

    value: float
    stderr: float
    count: int

    @property
    def interval95(self) -> tuple[float, float]:
        """The 95 % interval: of a share Wilson's (1927), so that 0 of 6 is not certain; otherwise 1.96 errors.

        A share's number of documents is the one at which right or wrong answers would have its standard error.
        """
        p, error = self.value, self.stderr
        if not 0 <= p <= 1:
            return (p - Z95 * error, p + Z95 * error)
        if error == 0 and 0 < p < 1:
            return (p, p)
        n = p * (1 - p) / error**2 if 0 < p < 1 and error > 0 else float(self.count)
        middle, half = p + Z95**2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
        return (max(0.0, (middle - half) / (1 + Z95**2 / n)), min(1.0, (middle + half) / (1 + Z95**2 / n)))

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        n = len(values)
        mean = math.fsum(values) / n
        if n < 2:
            return cls(mean, math.nan, n)
        return cls(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n), n)

    @classmethod
    def of_ratio(cls, values: Sequence[float], weights: Sequence[float]) -> Mean:
        """Return the mean with weights: of each document a share, and the number of things that it is a share of.

        The error is that of a ratio over documents, by the linear approximation; with equal weights it is `of`.
        """
        n, total = len(values), math.fsum(weights)
        mean = math.fsum(w * v for v, w in zip(values, weights)) / total
        if n < 2:
            return cls(mean, math.nan, n)
        spread = math.fsum((w * (v - mean)) ** 2 for v, w in zip(values, weights))
        return cls(mean, math.sqrt(spread * n / (n - 1)) / total, n)

    @classmethod
    def of_means(cls, means: Sequence[Mean]) -> Mean:
        """Return the mean of means with equal weights, whatever their counts."""
        n = len(means)
        return cls(
            math.fsum(m.value for m in means) / n,
            math.sqrt(math.fsum(m.stderr**2 for m in means)) / n,
            sum(m.count for m in means),
        )
