"""TruthfulQA in generation (Lin et al. 2022): is an answer closer, by chrF, to a right answer or to a wrong one?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.checks.chrf import check_package, chrf_acc, chrf_diff
from evaluation.data.items import label_of, text_of
from evaluation.data.questions import Question, answers_of
from evaluation.tasks import AnswerTask


def _read(record: Mapping[str, Any], place: str, index: int) -> Question:
    right = answers_of(record, "correct_answers", place)
    if best := label_of(record, "best_answer", place):
        right = tuple(dict.fromkeys((best, *right)))
    wrong = answers_of(record, "incorrect_answers", place)
    return Question(str(index), index, text_of(record, "question", place), place, right, wrong)


TASKS = (
    AnswerTask(
        name="truthfulqa_answers",
        folder="truthfulqa_answers",
        part="validation",
        read=_read,
        checks={"chrf_acc": chrf_acc, "chrf_diff": chrf_diff},
        requires=check_package,
    ),
)
