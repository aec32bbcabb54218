"""Records as they are, with the file and the line that each comes from, so that a mistake in one can name its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import UserError
from engine.records import read_records


class Source(NamedTuple):
    """A record and where it comes from."""

    path: str
    line: int
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        """ "FILE:LINE"."""
        return f"{self.path}:{self.line}"

    def text(self, field: str, default: str | None = None) -> str:
        """The field's text, the default where the field is absent. UserError if it is no text."""
        value = self.fields.get(field, default)
        if not isinstance(value, str):
            found = f"is {value!r:.60}" if field in self.fields else "is missing"
            raise UserError(f"{self.where}: field {field!r} {found}: every record needs a text there")
        return value


def read_sources(paths: Sequence[str]) -> list[Source]:
    """The records of the files, in order."""
    return [Source(path, line, fields) for path in paths for line, fields in read_records(path)]


def check_outputs(inputs: Sequence[str], outputs: Mapping[str, str]) -> None:
    """Before any work: UserError if an output (flag -> path) is an input, is named twice, or is not JSON Lines."""
    taken = {Path(path).resolve(): path for path in inputs}
    for flag, path in outputs.items():
        if not path.endswith((".jsonl", ".jsonl.gz")):
            raise UserError(f"{flag} {path}: the name must end in .jsonl or .jsonl.gz")
        if Path(path).resolve() in taken:
            raise UserError(f"{flag} {path} is another file of this command too: give a path of its own")
        taken[Path(path).resolve()] = path
