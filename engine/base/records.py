"""Read instruction and ranking files record by record, and check them.

A file is UTF-8 JSON Lines (`.jsonl`, `.jsonl.gz`) or a JSON list (`.json`); a byte-order mark and blank lines are
allowed. Any other fault is a UserError with file, line and field. Other fields are ignored.
"""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine.base.errors import UserError
from engine.base.jsonl import iterate_objects, write_objects

_DIALOG_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class InstructionRecord:
    """A task with Alpaca's fields. `input` is "" if the instruction needs none, `output` is "" if unknown."""

    id: str
    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class RankingRecord:
    """A prompt with K >= 2 responses; ranks[k] >= 1 is the rank of responses[k], 1 is best, equal ranks tie."""

    id: str
    instruction: str
    input: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]


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
    """Read and check a file's instruction records, in order.

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
    write_objects(Path(path), (dataclasses.asdict(row) if dataclasses.is_dataclass(row) else row for row in rows))


class _BadField(Exception):
    """A fault of a record, without its file and line."""


def _checked(path: Path, parse: Callable[[_Row], Record], on_bad_record: OnBadRecord | None) -> Iterator[Record]:
    """Open the file now, then parse its objects one by one; duplicate ids are refused."""
    objects = iterate_objects(path)

    def records() -> Iterator[Record]:
        line_of_id: dict[str, int] = {}
        for number, (line, fields) in enumerate(objects, start=1):
            try:
                record = parse(_Row(fields, number))
                if first := line_of_id.get(record.id):
                    raise _BadField(f"id {_short(record.id)} is that of line {first}: make ids unique or drop them")
            except _BadField as bad:
                error = UserError(f"{path}:{line}: {bad}")
                if on_bad_record is None:
                    raise error from None
                on_bad_record(error)
                continue
            line_of_id[record.id] = line
            yield record

    return records()


def _instruction(row: _Row, require_output: bool) -> InstructionRecord:
    output = row.text("output", empty_is_allowed=not require_output, default=None if require_output else "")
    return InstructionRecord(row.id(), row.text("instruction"), row.text("input", empty_is_allowed=True), output)


def _ranking(row: _Row) -> RankingRecord:
    if row.has_any("responses", "ranks"):
        instruction, input = row.text("instruction"), row.text("input", empty_is_allowed=True)
        responses, ranks = row.texts("responses"), row.ranks("ranks")
    elif row.has_any("prefered_output", "rejected_output"):
        instruction, input = row.text("instruction"), row.text("input", empty_is_allowed=True)
        responses, ranks = row.pair("prefered_output", "rejected_output"), (1, 2)
    elif row.has_any("prompt"):
        instruction, input = row.text("prompt"), ""
        responses, ranks = row.pair("chosen", "rejected"), (1, 2)
    elif row.has_any("chosen", "rejected"):
        instruction, *responses = _split_dialogs(*row.pair("chosen", "rejected"))
        input, responses, ranks = "", tuple(responses), (1, 2)
    else:
        raise _BadField(
            f"no field holds responses (fields: {row.names()}): give 'responses' and 'ranks', "
            "'prefered_output' and 'rejected_output', or 'chosen' and 'rejected'"
        )
    if len(responses) < 2:
        raise _BadField(f"field 'responses' holds {len(responses)}: give at least 2, or drop the record")
    if len(ranks) != len(responses):
        raise _BadField(f"field 'ranks' holds {len(ranks)} for {len(responses)} responses: give one for each")
    if len(set(ranks)) == 1:
        raise _BadField(f"field 'ranks' is {ranks[0]} for every response, which trains nothing: drop the record")
    if len(set(responses)) == 1:
        raise _BadField("all responses are the same text, which trains nothing: drop the record")
    return RankingRecord(row.id(), instruction, input, responses, ranks)


def _split_dialogs(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two dialogs: the shared part up to its last assistant heading, and the rest of each."""
    shared = os.path.commonprefix([chosen, rejected])
    at = shared.rfind(_DIALOG_TURN)
    if at < 0:
        raise _BadField(
            f"'chosen' and 'rejected' share no {_DIALOG_TURN!r} turn, and there is no 'prompt': add the field 'prompt'"
        )
    end = at + len(_DIALOG_TURN)
    return shared[:end].strip(), chosen[end:].strip(), rejected[end:].strip()


class _Row:
    """The fields of a record; each method returns a checked value or raises _BadField."""

    def __init__(self, fields: Mapping[str, Any], number: int) -> None:
        self._fields = fields
        self._number = number

    def has_any(self, *names: str) -> bool:
        return any(name in self._fields for name in names)

    def names(self) -> str:
        return ", ".join(_short(name) for name in list(self._fields)[:8]) or "none"

    def id(self) -> str:
        """Return the record's id, or its number in the file (from 1)."""
        value = self._fields.get("id", self._number)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return _text("'id'", value, empty_is_allowed=False)

    def text(self, name: str, empty_is_allowed: bool = False, default: str | None = None) -> str:
        value = self._fields.get(name, default)
        return _text(f"{name!r}", self._value(name) if value is None else value, empty_is_allowed)

    def pair(self, better: str, worse: str) -> tuple[str, str]:
        return self.text(better, empty_is_allowed=True), self.text(worse, empty_is_allowed=True)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._list(name, "strings")
        return tuple(_text(f"'{name}[{i}]'", value, empty_is_allowed=True) for i, value in enumerate(values))

    def ranks(self, name: str) -> tuple[int, ...]:
        ranks = self._list(name, "whole numbers")
        for i, rank in enumerate(ranks):
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise _BadField(f"field '{name}[{i}]' is {_short(rank)}: a rank is a whole number from 1, the best")
        return tuple(ranks)

    def _list(self, name: str, of_what: str) -> list[Any]:
        value = self._value(name)
        if not isinstance(value, list):
            raise _BadField(f"field {name!r} is {_short(value)}: it must be a list of {of_what}")
        return value

    def _value(self, name: str) -> Any:
        if name not in self._fields:
            hint = ' ("" where there is none)' if name == "input" else ""
            raise _BadField(f"field {name!r} is missing (fields: {self.names()}): add it{hint}")
        return self._fields[name]


def _text(name: str, value: Any, empty_is_allowed: bool) -> str:
    if not isinstance(value, str):
        raise _BadField(f"field {name} is {_short(value)}: it must be a string")
    if not empty_is_allowed and not value.strip():
        raise _BadField(f"field {name} is empty ({_short(value)}): fill it or drop the record")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _BadField(
                f"field {name} holds half a surrogate pair, {_short(value[error.start])}, at character "
                f"{error.start + 1}: the text was cut inside a character; fix it or drop the record"
            ) from None
    return value


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 60
_short = _shortener.repr
