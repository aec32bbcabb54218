"""Questions with exact facts (MultiLoKo's fields, Hupkes and Bogoychev 2025): {"question": ..., "targets": [...]}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.checks.text import contains, exact_match
from evaluation.data.items import id_of, text_of
from evaluation.data.questions import Question, answers_of
from evaluation.tasks import AnswerTask


def _read(record: Mapping[str, Any], place: str, index: int) -> Question:
    prompt, targets = text_of(record, "question", place), answers_of(record, "targets", place)
    return Question(id_of(record, "id", index, place), index, prompt, place, targets)


TASKS = (
    AnswerTask(
        name="facts",
        folder="facts",
        part="test",
        read=_read,
        checks={"exact_match": exact_match, "contains": contains},
    ),
)
