"""Questions with exact facts (MultiLoKo's fields, Hupkes and Bogoychev 2025): {"question": ..., "targets": [...]}."""

from __future__ import annotations

from evaluation.checks.text import contains, exact_match
from evaluation.data.questions import read_references
from evaluation.tasks import AnswerTask

_read = read_references("question", "targets")

TASKS = (
    AnswerTask(
        name="facts",
        folder="facts",
        part="test",
        read=_read,
        checks={"exact_match": exact_match, "contains": contains},
    ),
)
