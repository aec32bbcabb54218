"""XCOPA (Ponti et al. 2020): choose the cause or the effect of a premise; by the sentence's end, or by letter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.base.errors import UserError
from evaluation.data.items import Item, id_of, numbered_answer, text_of
from evaluation.data.lettered import letters_of, lines_of, stripped_options
from evaluation.data.prompt_words import PromptWords
from evaluation.tasks import Form, Task

# Language -> the words for "because" (before a cause) and "so" (before an effect).
CONNECTORS = {
    "zh": ("因为", "所以"),
    "it": ("perché", "quindi"),
    "vi": ("bởi vì", "vì vậy"),
    "id": ("karena", "maka"),
    "ta": ("காரணமாக", "எனவே"),
}
_KINDS = ("cause", "effect")


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    options = (text_of(record, "choice1", place), text_of(record, "choice2", place))
    if record.get("question") not in _KINDS:
        kind = record.get("question")
        raise UserError(f"{place}: field 'question' is {kind!r:.60}, it must be cause or effect: fix the record")
    truth = numbered_answer(record, "label", len(options), place)
    premise = text_of(record, "premise", place)
    return Item(id_of(record, "idx", index, place), index, premise, options, truth, place, record=record)


def _begun(lang: str, own_gap: bool = False) -> Callable[[Item, PromptWords], str]:
    """Return a function that writes the premise without its full stop, and the connector."""

    def question(item: Item, words: PromptWords) -> str:
        connector = CONNECTORS[lang][_KINDS.index(item.record["question"])]
        return f"{item.question.strip()[:-1]}{words.gap if own_gap else ' '}{connector}"

    return question


def _lettered(lang: str) -> Callable[[Item, PromptWords], str]:
    begun = _begun(lang, own_gap=True)

    def question(item: Item, words: PromptWords) -> str:
        return f"{begun(item, words)}{lines_of(item, strip=True)}\n{words.answer}"

    return question


def _in_sentence(item: Item) -> tuple[str, ...]:
    """Return the options with a small first letter."""
    return tuple(option[0].lower() + option[1:] for option in item.options)


def _stripped_in_sentence(item: Item) -> tuple[str, ...]:
    return tuple(option[0].lower() + option[1:] for option in stripped_options(item))


_POOL = ("validation",)

TASKS = (
    Task(
        name="xcopa",
        folder="xcopa",
        part="test",
        metrics=("acc",),
        read=_read,
        forms={f"lm-eval/{lang}": Form(_begun(lang), 0, _POOL, options=_in_sentence) for lang in CONNECTORS}
        | {f"strict/{lang}": Form(_begun(lang, True), 0, _POOL, _stripped_in_sentence) for lang in CONNECTORS},
    ),
    Task(
        name="xcopa_letters",
        folder="xcopa",
        part="test",
        metrics=("acc",),
        read=_read,
        forms={f"strict/{lang}": Form(_lettered(lang), 0, _POOL, letters_of) for lang in CONNECTORS},
    ),
)
