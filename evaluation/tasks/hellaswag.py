"""HellaSwag (Zellers et al. 2019): choose the right one of four endings of a scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.base.errors import UserError
from evaluation.data.cleaning import clean
from evaluation.data.items import Item, Unlabelled, text_of, texts_of, valid_unicode
from evaluation.data.prompt_words import PromptWords
from evaluation.tasks import Form, Task


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    label = str(record.get("label", "")).strip()
    if not label:
        raise Unlabelled
    endings = texts_of(record, "endings", place)
    if label not in [str(number) for number in range(len(endings))]:
        raise UserError(f"{place}: field 'label' is {label!r:.60}, the endings are 0 to {len(endings) - 1}: fix it")
    if not isinstance(second := record.get("ctx_b", ""), str):
        raise UserError(f"{place}: field 'ctx_b' is {second!r:.60}, it must be a text: fix the record or remove it")
    second = valid_unicode(second, "ctx_b", place).capitalize()
    scene = f"{text_of(record, 'ctx_a', place)} {second}"
    return Item(
        id=str(record.get("id", record.get("ind", index))),
        index=index,
        question=f"{text_of(record, 'activity_label', place)}: {scene}",
        options=endings,
        truth=tuple(int(str(number) == label) for number in range(len(endings))),
        place=place,
        record=record,
    )


def _scene(item: Item, words: PromptWords) -> str:
    return clean(item.question)


def _strict_scene(item: Item, words: PromptWords) -> str:
    return clean(item.question).strip()


def _endings(item: Item) -> tuple[str, ...]:
    return tuple(clean(ending) for ending in item.options)


_POOLS = ("train", "validation")

TASKS = (
    Task(
        name="hellaswag",
        folder="m_hellaswag",
        part="validation",
        metrics=("acc_norm", "acc", "acc_bytes"),
        read=_read,
        forms={
            "okapi": Form(_scene, 0, ("validation",), options=_endings, spare=("validation",)),
            "leaderboard-v1": Form(_scene, 10, _POOLS, options=_endings, spare=("validation",)),
            "lm-eval": Form(_scene, 0, ("validation",), options=_endings, spare=("validation",)),
            "lm-eval/en": Form(_scene, 0, _POOLS, options=_endings, spare=_POOLS),
            "strict": Form(_strict_scene, 0, _POOLS, options=_endings),
        },
    ),
)
