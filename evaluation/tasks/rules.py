"""Instructions with rules that a program checks: {"prompt": ..., "rules": [{"rule": "max_words", "value": 30}]}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.checks.rules import by_rule, prompt_acc, rule_acc
from evaluation.data.items import id_of, text_of
from evaluation.data.questions import Question, rules_of
from evaluation.tasks import AnswerTask


def _read(record: Mapping[str, Any], place: str, index: int) -> Question:
    prompt, rules = text_of(record, "prompt", place), rules_of(record, place)
    return Question(id_of(record, "id", index, place), index, prompt, place, rules=rules)


TASKS = (
    AnswerTask(
        name="rules",
        folder="rules",
        part="test",
        read=_read,
        checks={"prompt_acc": prompt_acc, "rule_acc": rule_acc},
        weights={"rule_acc": lambda question: float(len(question.rules))},
        by_kind=by_rule,
        kind_metric="rule_acc",
    ),
)
