"""Questions: prompts that a model answers in its own words, what is known about right answers, and the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.base.errors import UserError
from engine.base.record_fields import BadField
from engine.base.rules import Rule, read_rules
from evaluation.data.items import id_of, text_of, valid_unicode


@dataclass(frozen=True)
class Question:
    """A checked prompt.

    id          the record's id, or its row number
    index       row number in the file, from 0
    prompt      the text that is asked, without the template
    place       "FILE:LINE", for error messages
    references  accepted answers
    wrong       answers that are known to be wrong
    rules       what the answer must follow
    subset      a part of the file whose scores are reported apart; None for none
    """

    id: str
    index: int
    prompt: str
    place: str
    references: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    subset: str | None = None


@dataclass(frozen=True)
class Answer:
    """One generated answer. ended: by an end token or a stop text, not by the limit; toxicity: a probability."""

    text: str
    num_tokens: int
    ended: bool
    toxicity: float | None = None


def answers_of(record: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    """Return the field of this name. UserError unless it is a list of one or more texts, none of them blank."""
    values = record.get(name)
    if not isinstance(values, list) or not values:
        raise UserError(f"{place}: field {name!r} is {values!r:.60}, it must list one or more texts: fix the record")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{place}: field {name!r}, text {number} is {value!r:.60}: give it a text")
        valid_unicode(value, name, place)
    return tuple(values)


def read_references(prompt: str, references: str) -> Callable[[Mapping[str, Any], str, int], Question]:
    """Return the reader of records that have a prompt and accepted answers in the fields of these names."""

    def read(record: Mapping[str, Any], place: str, index: int) -> Question:
        text, accepted = text_of(record, prompt, place), answers_of(record, references, place)
        return Question(id_of(record, "id", index, place), index, text, place, accepted)

    return read


def rules_of(record: Mapping[str, Any], place: str) -> tuple[Rule, ...]:
    """Return the field 'rules'. UserError unless it is a list of rules that engine/base/rules.py can check."""
    try:
        return read_rules(record.get("rules"))
    except BadField as error:
        raise UserError(f"{place}: {error}: fix 'rules' in the record") from None
