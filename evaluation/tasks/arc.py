"""ARC-Challenge (Clark et al. 2018): science questions with three to five options; the option's text is scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.data.cleaning import clean
from evaluation.data.items import Item, lettered_answer, lettered_options, text_of
from evaluation.data.lettered import ask_cloze, stripped_options
from evaluation.data.prompt_words import PromptWords
from evaluation.tasks import Form, Task


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    options = lettered_options(record, place)
    return Item(
        id=text_of(record, "id", place),
        index=index,
        question=text_of(record, "instruction", place),
        options=options,
        truth=lettered_answer(record, len(options), place),
        place=place,
        record=record,
    )


def _raw(item: Item, words: PromptWords) -> str:
    return f"Question: {item.question}\nAnswer:"


def _cleaned(item: Item, words: PromptWords) -> str:
    return f"Question: {clean(item.question)}\nAnswer:"


def _cleaned_options(item: Item) -> tuple[str, ...]:
    return tuple(clean(option) for option in item.options)


_TRAIN = ("train",)

TASKS = (
    Task(
        name="arc",
        folder="m_arc",
        part="test",
        metrics=("acc_norm", "acc", "acc_bytes"),
        read=_read,
        forms={
            "okapi": Form(_raw, 25, _TRAIN),
            "leaderboard-v1": Form(_raw, 25, _TRAIN),
            "lm-eval": Form(_cleaned, 0, _TRAIN, options=_cleaned_options),
            "lm-eval/en": Form(_raw, 0, _TRAIN),
            "strict": Form(ask_cloze, 25, _TRAIN, options=stripped_options),
        },
    ),
)
