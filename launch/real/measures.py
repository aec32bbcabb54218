"""Measures of sampled answers with 95 % intervals: a bootstrap over prompts, paired where two models answer them.

P prompts, K samples of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.base.in_language import in_language
from engine.base.languages import Language
from engine.base.records import read_records
from engine.training.exact_match import canonical
from engine.training.heldout import checked

RESAMPLES = 4_000
Answers = list[dict[str, Any]]  # rows of launch/sample.py, and of launch/score.py


@dataclass(frozen=True)
class Interval:
    """A mean over prompts and its 95 % bootstrap interval (percentiles; Efron and Tibshirani 1993)."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, value_P: np.ndarray) -> Interval:
        """Estimate from one value per prompt. The same seed always, so that a table is the same each time."""
        draws = np.random.default_rng(0).integers(0, len(value_P), (RESAMPLES, len(value_P)))
        low, high = np.percentile(value_P[draws].mean(axis=1), [2.5, 97.5])
        return cls(float(value_P.mean()), float(low), float(high))

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    def beats(self, other: Interval) -> bool:
        """Whether the difference exceeds both half intervals added up."""
        return self.mean - other.mean > self.half + other.half


def read_answers(path: Path) -> Answers:
    """Read the rows of a file that launch/sample.py or launch/score.py wrote."""
    return [row for _, row in read_records(path)]


def measure(
    answers: Answers, scores: Mapping[str, Answers], expected: Mapping[str, str], language: Language, length: Callable
) -> dict[str, np.ndarray]:
    """Return {measure: float64 [P]}, the mean over a prompt's samples.

    right           equals the expected answer, ignoring outer blanks and the Unicode form
    right, more     its first line equals it, and more follows
    score NAME      the reward model's score, one for each entry of `scores`: the same rows, scored
    language        it is in the language, as far as its script and its letters tell (engine/base/in_language.py)
    ended           ended with EOS
    length          `length(text)`, in tokens
    """
    rows: dict[str, list[float]] = {name: [] for name in ("right", "right, more", "language", "ended", "length")}
    for row in answers:
        wanted, texts = expected[row["id"]], row["responses"]
        checks = [checked(text, wanted) for text in texts]
        rows["right"].append(_mean(check["exact_match"] for check in checks))
        rows["right, more"].append(_mean(check["right_then_more"] for check in checks))
        rows["language"].append(_mean(in_language(text, language) for text in texts))
        rows["ended"].append(_mean(row["finished"]))
        rows["length"].append(_mean(map(length, texts)))
    for name, scored in scores.items():
        assert [row["responses"] for row in scored] == [row["responses"] for row in answers], name
        rows[f"score {name}"] = [_mean(row["scores"]) for row in scored]
    return {name: np.array(values) for name, values in rows.items()}


def best_of(scored: Answers) -> Answers:
    """Return each prompt's answer with the highest score, as rows with one response; the first of equals."""
    rows = []
    for row in scored:
        best = max(range(len(row["scores"])), key=row["scores"].__getitem__)
        rows.append({**row, **{name: [row[name][best]] for name in ("responses", "finished", "scores")}})
    return rows


def best_by(scores: Mapping[str, Answers], name: str) -> dict[str, Answers]:
    """Return each prompt's best answer by the scores of that name, with its scores by every name."""
    best = best_of(scores[name])
    found = {}
    for other, rows in scores.items():
        at = [row["responses"].index(chosen["responses"][0]) for row, chosen in zip(rows, best)]
        found[other] = [{**chosen, "scores": [row["scores"][i]]} for chosen, row, i in zip(best, rows, at)]
    return found


def prefers_right(scored: Answers, expected: Mapping[str, str]) -> np.ndarray:
    """Return float64 [P'], a share for each prompt with right and wrong samples: its pairs that the scores order.

    A sample that goes on after the right answer is wrong. Equal scores count half.
    """
    shares = []
    for row in scored:
        right = [canonical(text) == canonical(expected[row["id"]]) for text in row["responses"]]
        good = [score for score, is_right in zip(row["scores"], right) if is_right]
        bad = [score for score, is_right in zip(row["scores"], right) if not is_right]
        if good and bad:
            shares.append(_mean((a > b) + 0.5 * (a == b) for a in good for b in bad))
    return np.array(shares)


def _mean(values: Any) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values)


def rows_by_id(answers: Answers, ids: Sequence[str]) -> Answers:
    """Return the rows of the given prompts, in their order."""
    by_id = {row["id"]: row for row in answers}
    return [by_id[i] for i in ids]
