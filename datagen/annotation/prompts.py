"""Read the prompts and answers to rank, and shuffle the answers for each annotator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.record_fields import BadField, short, text_of
from engine.base.records import read_records
from engine.base.turns import FIELDS, USER, Turn, read_turns

MAX_ANSWERS = 26


@dataclass(frozen=True)
class Prompt:
    """A prompt with at least two different answers.

    key       a hash of everything below: a judgement names it, so it never counts for another prompt or other answers
    fields    the prompt as a ranking record has it: instruction and input, or messages
    turns     what the page shows: the messages, the last one the user's
    answers   the different answers, in the order of the file
    """

    key: str
    id: str
    fields: Mapping[str, Any]
    turns: tuple[Turn, ...]
    answers: tuple[str, ...]

    def order(self, annotator: str, seed: int) -> list[int]:
        """Return the indices of the answers in the order shown: a shuffle that annotator, prompt and seed decide."""
        return sorted(range(len(self.answers)), key=lambda k: _hash([seed, annotator, self.key, k]))


def read_prompts(path: Path) -> tuple[list[Prompt], int]:
    """Return the prompts of a file, and how many records have only one answer, in as many copies.

    Records are those of launch/sample.py and `python -m datagen rank`. UserError with file and line for any other.
    """
    prompts, alike, line_of_id = [], 0, {}
    for number, (line, fields) in enumerate(read_records(path), 1):
        try:
            prompt = _prompt(fields, number)
            if first := line_of_id.get(prompt.id):
                raise BadField(f"id {short(prompt.id)} is that of line {first}: make ids unique or drop them")
        except BadField as bad:
            raise UserError(f"{path}:{line}: {bad}") from None
        line_of_id[prompt.id] = line
        if len(prompt.answers) > 1:
            prompts.append(prompt)
        else:
            alike += 1
    if not prompts:
        raise UserError(f"{path} has no prompt with two different answers: sample with another seed or temperature")
    return prompts, alike


def _prompt(fields: Mapping[str, Any], number: int) -> Prompt:
    id = fields.get("id", number)
    id = str(id) if isinstance(id, int) and not isinstance(id, bool) else text_of("'id'", id, empty_is_allowed=False)
    name = next((name for name in FIELDS if name in fields and "instruction" not in fields), None)
    if name:
        turns = read_turns(name, fields[name])
        if turns[-1].role != USER:
            raise BadField(f"field {name!r} ends with the assistant's message: end it with the user's")
        asked = {"messages": [turn.message for turn in turns]}
    else:
        if "instruction" not in fields:
            names = ", ".join(short(name) for name in list(fields)[:8]) or "none"
            raise BadField(f"field 'instruction' is missing (fields: {names}): give the output of launch/sample.py")
        instruction = text_of("'instruction'", fields["instruction"], empty_is_allowed=False)
        input = text_of("'input'", fields.get("input", ""), empty_is_allowed=True)
        turns = (Turn(USER, f"{instruction}\n\n{input}" if input else instruction),)
        asked = {"instruction": instruction, "input": input}
    answers = tuple(dict.fromkeys(_answers(fields)))
    return Prompt(_hash([id, asked, answers])[:16], id, asked, turns, answers)


def _answers(fields: Mapping[str, Any]) -> Sequence[str]:
    if "responses" not in fields:
        raise BadField("field 'responses' is missing: give the output of launch/sample.py")
    values = fields["responses"]
    if not isinstance(values, list):
        raise BadField(f"field 'responses' is {short(values)}: it must be a list of strings")
    if not 2 <= len(values) <= MAX_ANSWERS:
        raise BadField(f"field 'responses' has {len(values)}: give 2 to {MAX_ANSWERS}, or drop the record")
    return [text_of(f"'responses[{i}]'", value, empty_is_allowed=True) for i, value in enumerate(values)]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
