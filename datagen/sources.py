"""Read unchanged records with their file and line, for error messages, and check the paths of a command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.base.errors import UserError
from engine.base.records import read_records
from engine.base.strict_json import is_utf8


class Source(NamedTuple):
    """A record with its file and line."""

    path: str
    line: int
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        """The location, "FILE:LINE"."""
        return f"{self.path}:{self.line}"

    def text(self, field: str, default: str | None = None) -> str:
        """Return a string field, or the default if the field is absent. UserError for any other value."""
        value = self.fields.get(field, default)
        if not isinstance(value, str):
            found = f"is {value!r:.60}" if field in self.fields else "is missing"
            raise UserError(f"{self.where}: field {field!r} {found}: every record needs a string there")
        return value


def read_sources(paths: Sequence[str]) -> list[Source]:
    """Return the records of the files, in order. UserError with file, line and field for half a surrogate pair."""
    sources = [Source(path, line, fields) for path in paths for line, fields in read_records(path)]
    for source in sources:
        check_surrogates(source.fields, source.where)
    return sources


def check_surrogates(fields: Mapping[str, Any], where: str) -> None:
    """Raise UserError if a field holds half a surrogate pair: JSON can escape it, but UTF-8 cannot encode it."""
    if is_utf8(fields):
        return
    name = next(name for name, value in fields.items() if not is_utf8([name, value]))
    advice = "the text was cut inside a character; fix it or drop the record"
    raise UserError(f"{where}: field {name!r:.60} holds half a surrogate pair: {advice}")


def check_writable(flag: str, path: Path) -> None:
    """Raise UserError if no file can be created at the path. Creates nothing."""
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: pass a file path")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{flag} {path}: cannot write to {folder}: choose another path")


def check_outputs(inputs: Sequence[str], outputs: Mapping[str, str]) -> None:
    """Raise UserError if an output (flag -> path) is an input, a duplicate, not JSON Lines, or cannot be created."""
    taken = {Path(path).resolve(): path for path in inputs}
    for flag, path in outputs.items():
        check_writable(flag, Path(path))
        if not path.endswith((".jsonl", ".jsonl.gz")):
            raise UserError(f"{flag} {path}: the name must end in .jsonl or .jsonl.gz")
        if Path(path).resolve() in taken:
            raise UserError(f"{flag} {path} is also another file of this command: pass a different path")
        taken[Path(path).resolve()] = path
