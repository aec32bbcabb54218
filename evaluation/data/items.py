"""Items: a question of a benchmark with its options, checked but not yet formatted, and the checks of its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.base.errors import UserError


@dataclass(frozen=True)
class Item:
    """A checked question, with its texts as in the record: each protocol strips and cleans them by its own rule.

    id       the record's id
    index    row number in the file, from 0
    options  the candidate answers
    truth    1 for each right option, else 0
    place    "FILE:LINE", for error messages
    subject  the subject or domain of the question; None in a benchmark without them
    subset   a part of the benchmark whose score is reported apart; None for none
    record   the record itself, without null fields
    """

    id: str
    index: int
    question: str
    options: tuple[str, ...]
    truth: tuple[int, ...]
    place: str
    subject: str | None = None
    subset: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def gold(self) -> int:
        """The index of the first right option."""
        return self.truth.index(1)


class Unlabelled(Exception):
    """A record without an answer. The reader leaves it out and counts it; it is not an error."""


def text_of(record: Mapping[str, Any], name: str, place: str) -> str:
    """Return the field of this name. UserError unless it is a text that is not blank."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        shown = "missing" if value is None else f"{value!r:.60}"
        raise UserError(f"{place}: field {name!r} is {shown}, it must be a text: fix the record or remove it")
    return valid_unicode(value, name, place)


def valid_unicode(text: str, name: str, place: str) -> str:
    """Return the text. UserError if it holds half a surrogate pair, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"half a surrogate pair at character {error.start + 1}"
        raise UserError(f"{place}: field {name!r} holds {where}: fix the record or remove it") from None
    return text


def texts_of(record: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    """Return the field of this name. UserError unless it is a list of at least two texts, none of them blank."""
    values = record.get(name)
    if not isinstance(values, list) or len(values) < 2:
        raise UserError(f"{place}: field {name!r} is {values!r:.60}, it must list two or more options: fix the record")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{place}: field {name!r}, option {number} is {value!r:.60}: give it a text")
        valid_unicode(value, name, place)
    return tuple(values)


def lettered_options(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Return the texts of option_a, option_b, ... without empty ones at the end.

    UserError for a gap, a blank option, and fewer than two options.
    """
    names = sorted(name for name in record if len(name) == 8 and name.startswith("option_"))
    values = [record[name] for name in names]
    while values and (values[-1] is None or values[-1] == ""):
        values.pop()
    expected = [f"option_{chr(ord('a') + number)}" for number in range(len(values))]
    for name, value in zip(expected, values):
        if name not in record or not isinstance(value, str) or not value.strip():
            raise UserError(f"{place}: field {name!r} is {record.get(name)!r:.60}: give the option a text")
        valid_unicode(value, name, place)
    if len(values) < 2:
        raise UserError(f"{place}: the record has {len(values)} options (option_a, option_b, ...): give at least 2")
    return tuple(values)


def lettered_answer(
    record: Mapping[str, Any], num_options: int, place: str, name: str = "answer", any_case: bool = False
) -> tuple[int, ...]:
    """Return 1 for the option that the field names by its letter, 0 for the others.

    any_case  the letter may be small
    Unlabelled if the answer is missing or empty, UserError if it names no option.
    """
    answer = record.get(name)
    if answer is None or answer == "":
        raise Unlabelled
    letters = [chr(ord("A") + number) for number in range(num_options)]
    found = answer.upper() if any_case and isinstance(answer, str) else answer
    if found not in letters:
        raise UserError(
            f"{place}: field {name!r} is {answer!r:.60}, the options are A to {letters[-1]}: fix the record"
        )
    return tuple(int(letter == found) for letter in letters)


def numbered_answer(
    record: Mapping[str, Any], name: str, num_options: int, place: str, first: int = 0
) -> tuple[int, ...]:
    """Return 1 for the option that the field names by its number (7 or "7"), 0 for the others.

    first  number of the first option
    Unlabelled if the field is missing, empty or -1, UserError if it names no option.
    """
    answer = record.get(name)
    if answer in (None, "", -1, "-1"):
        raise Unlabelled
    numbers = [str(first + number) for number in range(num_options)]
    if isinstance(answer, bool) or not isinstance(answer, int | str) or str(answer) not in numbers:
        raise UserError(
            f"{place}: field {name!r} is {answer!r:.60}, the options are {first} to {numbers[-1]}: fix the record"
        )
    return tuple(int(number == str(answer)) for number in numbers)


def id_of(record: Mapping[str, Any], name: str, index: int, place: str) -> str:
    """Return the field, a text or a whole number, as a text; the row number if it is missing. UserError otherwise."""
    value = record.get(name)
    if value is None:
        return str(index)
    return str(value) if type(value) is int else text_of(record, name, place)


def label_of(record: Mapping[str, Any], name: str, place: str) -> str | None:
    """Return the field of this name, None if it is missing or empty. UserError unless it is a text."""
    if record.get(name) in (None, ""):
        return None
    return text_of(record, name, place)
