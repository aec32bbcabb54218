"""Belebele (Bandarkar et al. 2024): a passage, a question about it and four answers; by letter, or by text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.data.items import Item, id_of, numbered_answer, text_of
from evaluation.data.lettered import LETTERS, ask_cloze, ask_letters, letters_of, stripped_options
from evaluation.data.prompt_words import PromptWords
from evaluation.tasks import Form, Task


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    options = tuple(text_of(record, f"mc_answer{number}", place) for number in range(1, 5))
    passage, question = text_of(record, "flores_passage", place), text_of(record, "question", place)
    truth = numbered_answer(record, "correct_answer_num", len(options), place, first=1)
    link, number = id_of(record, "link", index, place), id_of(record, "question_number", index, place)
    name = f"{link}/{number}"  # the same in all languages
    return Item(name, index, f"{passage.strip()}\n{question.strip()}", options, truth, place, record=record)


def _lm_eval(item: Item, words: PromptWords) -> str:
    lines = "".join(f"\n{letter}: {option}" for letter, option in zip(LETTERS, item.options))
    return f"P: {item.record['flores_passage']}\nQ: {item.record['question'].strip()}{lines}\nAnswer:"


_POOL = ("test",)  # the set has no other part

TASKS = (
    Task(
        name="belebele",
        folder="belebele",
        part="test",
        metrics=("acc", "acc_norm"),
        read=_read,
        forms={
            "lm-eval": Form(_lm_eval, 0, _POOL, options=letters_of, spare=_POOL, in_order=True),
            "strict": Form(ask_letters, 0, _POOL, options=letters_of),
        },
    ),
    Task(
        name="belebele_cloze",
        folder="belebele",
        part="test",
        metrics=("acc_norm", "acc", "acc_bytes"),
        read=_read,
        forms={"strict": Form(ask_cloze, 0, _POOL, options=stripped_options)},
    ),
)
