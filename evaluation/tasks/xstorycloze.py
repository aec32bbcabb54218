"""XStoryCloze (Lin et al. 2022): choose the right one of two last sentences of a story; by text, or by letter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.data.items import Item, id_of, numbered_answer, text_of
from evaluation.data.lettered import ask_letters, go_on, letters_of, stripped_options
from evaluation.data.prompt_words import PromptWords
from evaluation.tasks import Form, Task


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    story = " ".join(text_of(record, f"input_sentence_{number}", place) for number in range(1, 5))
    options = (text_of(record, "sentence_quiz1", place), text_of(record, "sentence_quiz2", place))
    truth = numbered_answer(record, "answer_right_ending", len(options), place, first=1)
    return Item(id_of(record, "story_id", index, place), index, story, options, truth, place, record=record)


def _story(item: Item, words: PromptWords) -> str:
    return item.question


_POOL = ("train",)

TASKS = (
    Task(
        name="xstorycloze",
        folder="xstorycloze",
        part="eval",
        metrics=("acc",),
        read=_read,
        forms={
            "lm-eval": Form(_story, 0, _POOL, spare=_POOL),
            "strict": Form(go_on, 0, _POOL, options=stripped_options),
        },
    ),
    Task(
        name="xstorycloze_letters",
        folder="xstorycloze",
        part="eval",
        metrics=("acc",),
        read=_read,
        forms={"strict": Form(ask_letters, 0, _POOL, options=letters_of)},
    ),
)
