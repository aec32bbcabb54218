"""Items: one question of a benchmark with its options, as its record says them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.base.errors import UserError


@dataclass(frozen=True)
class Item:
    """A checked question. Texts are as in the record: what a protocol strips or cleans is its own affair.

    options  the candidates
    truth    1 for each right candidate, else 0
    subject  MMLU's subject; None elsewhere
    record   the record itself, without the fields that are null
    place    "FILE:LINE", for messages
    """

    id: str
    index: int
    question: str
    options: tuple[str, ...]
    truth: tuple[int, ...]
    place: str
    subject: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def gold(self) -> int:
        """Index of the first right option."""
        return self.truth.index(1)


class Unlabelled(Exception):
    """A record that says no answer: left out and counted, not an error."""


def text_of(record: Mapping[str, Any], name: str, place: str) -> str:
    """The record's field, a text that is not blank. UserError otherwise."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        shown = "missing" if value is None else f"{value!r:.60}"
        raise UserError(f"{place}: field {name!r} is {shown}, it must be a text: mend the record or leave it out")
    return whole_characters(value, name, place)


def whole_characters(text: str, name: str, place: str) -> str:
    """The text. UserError where it holds half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"half a surrogate pair at character {error.start + 1}"
        raise UserError(f"{place}: field {name!r} holds {where}: mend the record or leave it out") from None
    return text


def texts_of(record: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    """The record's field, a list of at least two texts, none of them blank. UserError otherwise."""
    values = record.get(name)
    if not isinstance(values, list) or len(values) < 2:
        raise UserError(f"{place}: field {name!r} is {values!r:.60}, it must list two options or more: mend the record")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{place}: field {name!r}, option {number} is {value!r:.60}: give it a text")
        whole_characters(value, name, place)
    return tuple(values)


def lettered_options(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """option_a, option_b, ... as far as they go; options left empty at the end are no options."""
    names = sorted(name for name in record if len(name) == 8 and name.startswith("option_"))
    values = [record[name] for name in names]
    while values and (values[-1] is None or values[-1] == ""):
        values.pop()
    expected = [f"option_{chr(ord('a') + number)}" for number in range(len(values))]
    for name, value in zip(expected, values):
        if name not in record or not isinstance(value, str) or not value.strip():
            raise UserError(f"{place}: field {name!r} is {record.get(name)!r:.60}: give the option a text")
        whole_characters(value, name, place)
    if len(values) < 2:
        raise UserError(f"{place}: it has {len(values)} options (option_a, option_b, ...), at least 2 are needed")
    return tuple(values)


def lettered_answer(record: Mapping[str, Any], num_options: int, place: str) -> tuple[int, ...]:
    """Truth of each option from `answer`, a letter. Unlabelled where there is none, UserError where it is no option."""
    answer = record.get("answer")
    if answer is None or answer == "":
        raise Unlabelled
    letters = [chr(ord("A") + number) for number in range(num_options)]
    if answer not in letters:
        raise UserError(
            f"{place}: field 'answer' is {answer!r:.60}, the options are A to {letters[-1]}: mend the record"
        )
    return tuple(int(letter == answer) for letter in letters)
