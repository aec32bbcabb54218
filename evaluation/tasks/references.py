"""Prompts with accepted answers: {"prompt": ..., "references": [...]}, by exact match or by chrF."""

from __future__ import annotations

from evaluation.checks.chrf import check_package, chrf
from evaluation.checks.text import contains, exact_match
from evaluation.data.questions import read_references
from evaluation.tasks import AnswerTask

_read = read_references("prompt", "references")

TASKS = (
    AnswerTask(
        name="references",
        folder="references",
        part="test",
        read=_read,
        checks={"exact_match": exact_match, "contains": contains},
    ),
    AnswerTask(
        name="references_chrf",
        folder="references",
        part="test",
        read=_read,
        checks={"chrf": chrf},
        requires=check_package,
    ),
)
