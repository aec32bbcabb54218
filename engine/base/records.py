"""Read instruction and ranking files record by record, and check them.

A file is UTF-8 JSON Lines (`.jsonl`, `.jsonl.gz`) or a JSON list (`.json`); a byte-order mark and blank lines are
allowed. Any other fault is a UserError with file, line and field. Other fields are ignored.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine.base.errors import UserError
from engine.base.jsonl import iterate_objects, write_objects
from engine.base.record_fields import BadField, short, text_of
from engine.base.turns import ASSISTANT, FIELDS, USER, Turn, read_turns

_DIALOG_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class InstructionRecord:
    """A task with Alpaca's fields. `input` is "" if the instruction needs none, `output` is "" if unknown.

    Of a conversation, `instruction` is the user's last message, `output` the answer to it, and `history` what was said
    before: an optional system message, then the user's and the assistant's in turn.
    """

    id: str
    instruction: str
    input: str
    output: str
    history: tuple[Turn, ...] = ()

    @property
    def prompt(self) -> tuple[tuple[Turn, ...], str, str]:
        """What is asked: equal prompts are equal."""
        return self.history, self.instruction, self.input


@dataclass(frozen=True)
class RankingRecord:
    """A prompt with K >= 2 responses; ranks[k] >= 1 is the rank of responses[k], 1 is best, equal ranks tie.

    `history` as in InstructionRecord.
    """

    id: str
    instruction: str
    input: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    history: tuple[Turn, ...] = ()

    @property
    def prompt(self) -> tuple[tuple[Turn, ...], str, str]:
        """What is asked: equal prompts are equal."""
        return self.history, self.instruction, self.input


Record = TypeVar("Record", InstructionRecord, RankingRecord)
OnBadRecord = Callable[[UserError], None]


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Iterate over a file's JSON objects, unchecked, each with its first line (counted from 1).

    A wrong path is reported at once; the file is read during iteration.
    """
    return iterate_objects(Path(path))


def read_instructions(
    path: str | os.PathLike[str], require_output: bool = True, on_bad_record: OnBadRecord | None = None
) -> Iterator[InstructionRecord]:
    """Read and check a file's instruction records, in order; without `instruction`, conversations:

      messages        [{"role": "system", "user" or "assistant", "content": text}, ...]
      conversations   [{"from": "system", "human" or "gpt", "value": text}, ...] (ShareGPT)

    Without the assistant's last answer, a conversation has no output.
    require_output: a missing or empty `output` is an error (SFT); otherwise it is read as "" (PPO needs only prompts).
    on_bad_record: called with the error of a bad record, which is then skipped; without it the error is raised.
    (Alpaca's 52,002 records contain 28 with an empty output.) A damaged file always raises.
    """
    return _checked(Path(path), lambda row: _instruction(row, require_output), on_bad_record)


def read_rankings(path: str | os.PathLike[str], on_bad_record: OnBadRecord | None = None) -> Iterator[RankingRecord]:
    """Read and check a file's ranking records, in order; pairs become K = 2 with ranks 1 and 2.

    Each record has one of these shapes:
      instruction, input, responses, ranks                    this project's
      instruction, input, prefered_output, rejected_output    Okapi's published pairs, in its spelling
      prompt, chosen, rejected                                the prompt becomes the instruction
      chosen, rejected                                        whole dialogs (hh-rlhf): what both share, up to and with
                                                              its last "Assistant:", becomes the instruction; white
                                                              space around it and around the responses is dropped
    `messages` or `conversations` that end with the user's message may stand for instruction and input, or for prompt.
    Empty responses are kept, because a reward model has to judge them, too.
    on_bad_record: as in read_instructions.
    """
    return _checked(Path(path), _ranking, on_bad_record)


def write_jsonl(
    path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any] | InstructionRecord | RankingRecord]
) -> None:
    """Write rows atomically as `.jsonl` or `.jsonl.gz`, creating missing folders.

    If a row cannot be written (UserError), the file at the path is unchanged.
    """
    write_objects(Path(path), (fields_of(row) if dataclasses.is_dataclass(row) else row for row in rows))


def fields_of(record: InstructionRecord | RankingRecord) -> dict[str, Any]:
    """Return a record as the fields from which it is read."""
    fields = dataclasses.asdict(record)
    if history := fields.pop("history"):
        turns = [*map(Turn._make, history), Turn(USER, fields.pop("instruction"))]
        turns += [Turn(ASSISTANT, output)] if (output := fields.pop("output", "")) else []
        fields.pop("input")
        return {"id": fields.pop("id"), "messages": [turn.message for turn in turns], **fields}
    return fields


def _checked(path: Path, parse: Callable[[_Row], Record], on_bad_record: OnBadRecord | None) -> Iterator[Record]:
    """Open the file now, then parse its objects one by one; duplicate ids are refused."""
    objects = iterate_objects(path)

    def records() -> Iterator[Record]:
        line_of_id: dict[str, int] = {}
        for number, (line, fields) in enumerate(objects, start=1):
            try:
                record = parse(_Row(fields, number))
                if first := line_of_id.get(record.id):
                    raise BadField(f"id {short(record.id)} is that of line {first}: make ids unique or drop them")
            except BadField as bad:
                error = UserError(f"{path}:{line}: {bad}")
                if on_bad_record is None:
                    raise error from None
                on_bad_record(error)
                continue
            line_of_id[record.id] = line
            yield record

    return records()


def _instruction(row: _Row, require_output: bool) -> InstructionRecord:
    if row.is_conversation:
        *turns, last = row.turns()
        if last.role == USER and require_output:
            raise BadField(f"field {row.turns_field!r} ends with the user's message: add the answer or drop the record")
        *history, asked = turns if last.role == ASSISTANT else [*turns, last]
        answer = last.content if last.role == ASSISTANT else ""
        return InstructionRecord(row.id(), asked.content, "", answer, tuple(history))
    output = row.text("output", empty_is_allowed=not require_output, default=None if require_output else "")
    return InstructionRecord(row.id(), row.text("instruction"), row.text("input", empty_is_allowed=True), output)


def _ranking(row: _Row) -> RankingRecord:
    history: tuple[Turn, ...] = ()
    if row.is_conversation and not row.has_any("prompt"):
        *history, asked = row.turns()
        if asked.role != USER:
            raise BadField(f"field {row.turns_field!r} ends with the assistant's message: end it with the user's")
        instruction, input = asked.content, ""
    elif row.has_any("responses", "ranks", "prefered_output", "rejected_output"):
        instruction, input = row.text("instruction"), row.text("input", empty_is_allowed=True)
    if row.has_any("responses", "ranks"):
        responses, ranks = row.texts("responses"), row.ranks("ranks")
    elif row.has_any("prefered_output", "rejected_output"):
        responses, ranks = row.pair("prefered_output", "rejected_output"), (1, 2)
    elif row.has_any("prompt"):
        instruction, input = row.text("prompt"), ""
        responses, ranks = row.pair("chosen", "rejected"), (1, 2)
    elif row.is_conversation and row.has_any("chosen", "rejected"):
        responses, ranks = row.pair("chosen", "rejected"), (1, 2)
    elif row.has_any("chosen", "rejected"):
        instruction, *responses = _split_dialogs(*row.pair("chosen", "rejected"))
        input, responses, ranks = "", tuple(responses), (1, 2)
    else:
        raise BadField(
            f"no field holds responses (fields: {row.names()}): give 'responses' and 'ranks', "
            "'prefered_output' and 'rejected_output', or 'chosen' and 'rejected'"
        )
    if len(responses) < 2:
        raise BadField(f"field 'responses' holds {len(responses)}: give at least 2, or drop the record")
    if len(ranks) != len(responses):
        raise BadField(f"field 'ranks' holds {len(ranks)} for {len(responses)} responses: give one for each")
    if len(set(ranks)) == 1:
        raise BadField(f"field 'ranks' is {ranks[0]} for every response, which trains nothing: drop the record")
    if len(set(responses)) == 1:
        raise BadField("all responses are the same text, which trains nothing: drop the record")
    return RankingRecord(row.id(), instruction, input, responses, ranks, tuple(history))


def _split_dialogs(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two dialogs: the shared part up to its last assistant heading, and the rest of each."""
    shared = os.path.commonprefix([chosen, rejected])
    at = shared.rfind(_DIALOG_TURN)
    if at < 0:
        raise BadField(
            f"'chosen' and 'rejected' share no {_DIALOG_TURN!r} turn, and there is no 'prompt': add the field 'prompt'"
        )
    end = at + len(_DIALOG_TURN)
    return shared[:end].strip(), chosen[end:].strip(), rejected[end:].strip()


class _Row:
    """The fields of a record; each method returns a checked value or raises BadField."""

    def __init__(self, fields: Mapping[str, Any], number: int) -> None:
        self._fields = fields
        self._number = number

    def has_any(self, *names: str) -> bool:
        return any(name in self._fields for name in names)

    @property
    def turns_field(self) -> str | None:
        """The field with the messages of a conversation, unless there is an instruction."""
        return next((name for name in FIELDS if name in self._fields and "instruction" not in self._fields), None)

    @property
    def is_conversation(self) -> bool:
        return self.turns_field is not None

    def turns(self) -> tuple[Turn, ...]:
        return read_turns(self.turns_field, self._fields[self.turns_field])

    def names(self) -> str:
        return ", ".join(short(name) for name in list(self._fields)[:8]) or "none"

    def id(self) -> str:
        """Return the record's id, or its number in the file (from 1)."""
        value = self._fields.get("id", self._number)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return text_of("'id'", value, empty_is_allowed=False)

    def text(self, name: str, empty_is_allowed: bool = False, default: str | None = None) -> str:
        value = self._fields.get(name, default)
        return text_of(f"{name!r}", self._value(name) if value is None else value, empty_is_allowed)

    def pair(self, better: str, worse: str) -> tuple[str, str]:
        return self.text(better, empty_is_allowed=True), self.text(worse, empty_is_allowed=True)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._list(name, "strings")
        return tuple(text_of(f"'{name}[{i}]'", value, empty_is_allowed=True) for i, value in enumerate(values))

    def ranks(self, name: str) -> tuple[int, ...]:
        ranks = self._list(name, "whole numbers")
        for i, rank in enumerate(ranks):
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise BadField(f"field '{name}[{i}]' is {short(rank)}: a rank is a whole number from 1, the best")
        return tuple(ranks)

    def _list(self, name: str, of_what: str) -> list[Any]:
        value = self._value(name)
        if not isinstance(value, list):
            raise BadField(f"field {name!r} is {short(value)}: it must be a list of {of_what}")
        return value

    def _value(self, name: str) -> Any:
        if name not in self._fields:
            hint = ' ("" where there is none)' if name == "input" else ""
            raise BadField(f"field {name!r} is missing (fields: {self.names()}): add it{hint}")
        return self._fields[name]
