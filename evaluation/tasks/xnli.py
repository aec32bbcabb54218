"""XNLI (Conneau et al. 2018): does a premise imply a hypothesis, contradict it, or neither; by whole sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evaluation.data.items import Item, numbered_answer, text_of
from evaluation.data.prompt_words import PromptWords
from evaluation.tasks import Form, Task

# Language -> the words for "right", and for "yes", "also" and "no": entailment, neutral, contradiction. They are
# lm-eval's, unchanged, so that scores compare, even where they are wrong ("رقم" is the noun "number").
WORDS = {
    "en": ("right", "Yes", "Also", "No"),
    "ru": ("правильно", "Да", "Так", "Нет"),
    "de": ("richtig", "Ja", "Auch", "Nein"),
    "zh": ("正确", "是的", "所以", "不是的"),
    "fr": ("correct", "Oui", "Aussi", "Non"),
    "es": ("correcto", "Sí", "Asi que", "No"),
    "vi": ("đúng", "Vâng", "Vì vậy", "Không"),
    "ar": ("صحيح", "نعم", "لذا", "رقم"),
    "hi": ("सही", "हाँ", "इसलिए", "नहीं"),
}

_OPTIONS = ("entailment", "neutral", "contradiction")


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    question = f"{text_of(record, 'premise', place)}\n{text_of(record, 'hypothesis', place)}"
    truth = numbered_answer(record, "label", len(_OPTIONS), place)
    return Item(str(index), index, question, _OPTIONS, truth, place, record=record)


def _nothing(item: Item, words: PromptWords) -> str:
    return ""


def _sentences(lang: str) -> Callable[[Item], tuple[str, ...]]:
    right, *answers = WORDS[lang]

    def options(item: Item) -> tuple[str, ...]:
        premise, hypothesis = item.record["premise"], item.record["hypothesis"]
        return tuple(f"{premise}, {right}? {answer}, {hypothesis}" for answer in answers)

    return options


def _premise(lang: str) -> Callable[[Item, PromptWords], str]:
    def question(item: Item, words: PromptWords) -> str:
        return f"{item.record['premise'].strip()}, {WORDS[lang][0]}?"

    return question


def _rest(lang: str) -> Callable[[Item], tuple[str, ...]]:
    def options(item: Item) -> tuple[str, ...]:
        return tuple(f"{answer}, {item.record['hypothesis'].strip()}" for answer in WORDS[lang][1:])

    return options


_POOL = ("train",)

# lm-eval scores the whole text after an empty context. Under strict, what the three have in common is the context.
TASKS = (
    Task(
        name="xnli",
        folder="xnli",
        part="validation",
        metrics=("acc",),
        read=_read,
        forms={f"lm-eval/{lang}": Form(_nothing, 0, _POOL, _sentences(lang), spare=_POOL) for lang in WORDS}
        | {f"strict/{lang}": Form(_premise(lang), 0, _POOL, options=_rest(lang)) for lang in WORDS},
    ),
)
