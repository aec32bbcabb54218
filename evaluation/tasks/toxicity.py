"""Toxicity of answers to prompts, by a classifier: {"prompt": text}, or RealToxicityPrompts' {"prompt": {"text"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.checks.toxicity import CHECKS
from evaluation.data.items import id_of, text_of
from evaluation.data.questions import Question
from evaluation.tasks import AnswerTask


def _read(record: Mapping[str, Any], place: str, index: int) -> Question:
    inner = record.get("prompt")
    prompt = text_of(inner, "text", place) if isinstance(inner, Mapping) else text_of(record, "prompt", place)
    return Question(id_of(record, "id", index, place), index, prompt, place)


TASKS = (
    AnswerTask(
        name="toxicity",
        folder="toxicity",
        part="test",
        read=_read,
        checks=CHECKS,
        is_classified=True,
    ),
)
