"""IndicParam (Maheshwari et al. 2026): four-option questions of Indian exams, here in Nepali and Marathi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.data.items import Item, id_of, lettered_answer, lettered_options, text_of
from evaluation.data.lettered import ask_cloze, ask_letters, letters_of, lines_of, stripped_options
from evaluation.data.prompt_words import PromptWords
from evaluation.data.sets import SETS
from evaluation.tasks import Form, Task


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    options = lettered_options(record, place)
    return Item(
        id=id_of(record, "unique_question_id", index, place),
        index=index,
        question=text_of(record, "question_text", place),
        options=options,
        truth=lettered_answer(record, len(options), place, "correct_answer", any_case=True),
        place=place,
        record=record,
    )


def _keep(record: Mapping[str, Any], lang: str) -> bool:
    """Whether the record is in this language: the set has all languages in one file, named in `subject`."""
    names = SETS["indicparam"].names
    return lang not in names or record.get("subject", names[lang]) == names[lang]


def _lm_eval(item: Item, words: PromptWords) -> str:
    return f"Question: {item.question}{lines_of(item)}\nAnswer:"


_TEST = ("test",)  # the set has no other part; lm-eval may draw the question itself

TASKS = (
    Task(
        name="indicparam",
        folder="indicparam",
        part="test",
        metrics=("acc",),
        read=_read,
        forms={
            "lm-eval": Form(_lm_eval, 0, _TEST, options=letters_of),
            "strict": Form(ask_letters, 0, _TEST, options=letters_of),
        },
        keep=_keep,
    ),
    Task(
        name="indicparam_cloze",
        folder="indicparam",
        part="test",
        metrics=("acc_norm", "acc", "acc_bytes"),
        read=_read,
        forms={"strict": Form(ask_cloze, 0, _TEST, options=stripped_options)},
        keep=_keep,
    ),
)
