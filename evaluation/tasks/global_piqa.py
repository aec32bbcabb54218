"""Global PIQA (Chang et al. 2025): choose the right one of two or four ends of a text about daily life."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evaluation.data.items import Item, id_of, numbered_answer, text_of
from evaluation.data.lettered import ask_letters, go_on, letters_of, stripped_options
from evaluation.data.prompt_words import PromptWords
from evaluation.tasks import Form, Task


def _reader(num_options: int) -> Callable[[Mapping[str, Any], str, int], Item]:
    def read(record: Mapping[str, Any], place: str, index: int) -> Item:
        options = tuple(text_of(record, f"solution{number}", place) for number in range(num_options))
        truth = numbered_answer(record, "label", num_options, place)
        question = text_of(record, "prompt", place)
        return Item(id_of(record, "example_id", index, place), index, question, options, truth, place, record=record)

    return read


def _prompt(item: Item, words: PromptWords) -> str:
    return item.question


_TEST = ("test",)  # the set has no other part; lm-eval may draw the question itself


def _tasks(name: str, num_options: int) -> tuple[Task, Task]:
    forms = {"lm-eval": Form(_prompt, 0, _TEST), "strict": Form(go_on, 0, _TEST, options=stripped_options)}
    letters = {"strict": Form(ask_letters, 0, _TEST, options=letters_of)}
    read = _reader(num_options)
    return (
        Task(name, name, "test", ("acc", "acc_norm", "acc_bytes"), read, forms),
        Task(f"{name}_letters", name, "test", ("acc",), read, letters),
    )


TASKS = (*_tasks("global_piqa_nonparallel", 2), *_tasks("global_piqa_parallel", 4))
