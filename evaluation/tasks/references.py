"""Prompts with accepted answers: {"prompt": ..., "references": [...]}, by exact match or by chrF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.checks.chrf import check_package, chrf
from evaluation.checks.text import contains, exact_match
from evaluation.data.items import id_of, text_of
from evaluation.data.questions import Question, answers_of
from evaluation.tasks import AnswerTask


def _read(record: Mapping[str, Any], place: str, index: int) -> Question:
    prompt, references = text_of(record, "prompt", place), answers_of(record, "references", place)
    return Question(id_of(record, "id", index, place), index, prompt, place, references)


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
