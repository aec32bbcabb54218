"""chrF (Popovic 2015) of an answer to its closest reference, by the package sacrebleu, which is optional."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from engine.base.errors import UserError
from evaluation.checks.text import mean_of
from evaluation.data.questions import Question

PACKAGE = "sacrebleu"


def check_package(task: str) -> None:
    """UserError if sacrebleu is not installed."""
    if find_spec(PACKAGE) is None:
        raise UserError(f"task {task} is scored by chrF, and {PACKAGE} is not installed: pip install {PACKAGE}")


def closest(answer: str, references: Sequence[str]) -> float:
    """Return the largest chrF of the answer to a reference, 0 to 1."""
    return max(_metric().sentence_score(answer, [reference]).score for reference in references) / 100


@mean_of
def chrf(question: Question, answer: str) -> float:
    """Return the answer's chrF to its closest reference."""
    return closest(answer, question.references)


@mean_of
def chrf_diff(question: Question, answer: str) -> float:
    """Return the chrF to the closest right answer minus that to the closest wrong one, -1 to 1."""
    return closest(answer, question.references) - closest(answer, question.wrong)


@mean_of
def chrf_acc(question: Question, answer: str) -> float:
    """Return 1 if the answer is closer to a right answer than to every wrong one, else 0."""
    return float(closest(answer, question.references) > closest(answer, question.wrong))


@lru_cache(maxsize=1)
def _metric() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()
