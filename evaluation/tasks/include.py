"""INCLUDE (Romanou et al. 2025): four-option questions of local exams, by domain; region-specific ones apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.base.errors import UserError
from evaluation.data.items import Item, label_of, lettered_options, numbered_answer, text_of
from evaluation.data.lettered import ask_cloze, ask_letters, letters_of, stripped_options
from evaluation.data.prompt_words import PromptWords
from evaluation.tasks import Form, Task


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    options = lettered_options(record, place)
    if len(options) != 4:
        raise UserError(f"{place}: the record has {len(options)} options, it must have option_a to option_d: fix it")
    region = label_of(record, "regional_feature", place)
    return Item(
        id=str(index),
        index=index,
        question=text_of(record, "question", place),
        options=options,
        truth=numbered_answer(record, "answer", len(options), place),
        place=place,
        subject=text_of(record, "domain", place),
        subset=region and ("region_agnostic" if region == "agnostic" else "region_specific"),
        record=record,
    )


def _lm_eval(item: Item, words: PromptWords) -> str:
    a, b, c, d = item.options
    return f"{item.question.strip()}\nA. {a}\nB. {b}\nC. {c}\n D. {d}\nAnswer:"  # lm-eval has the space before D


def _header(item: Item) -> str:
    # lm-eval writes nothing between this sentence and the first question.
    return f"The following is multiple-choice question about {item.subject}."


_TEST = ("test",)
_POOLS = ("validation", "test")

TASKS = (
    Task(
        name="include",
        folder="include",
        part="test",
        metrics=("acc",),
        read=_read,
        forms={
            # lm-eval draws shots from the test part, and may draw the question itself.
            "lm-eval": Form(_lm_eval, 0, _TEST, options=letters_of, header=_header, by_subject=True),
            "strict": Form(ask_letters, 0, _POOLS, options=letters_of, by_subject=True),
        },
    ),
    Task(
        name="include_cloze",
        folder="include",
        part="test",
        metrics=("acc_norm", "acc", "acc_bytes"),
        read=_read,
        forms={"strict": Form(ask_cloze, 0, _POOLS, options=stripped_options, by_subject=True)},
    ),
)
