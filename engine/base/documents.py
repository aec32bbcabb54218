"""Pretraining text: documents of record files with a field `text`, and of plain text files, split at blank lines."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.base.errors import UserError
from engine.base.jsonl import iterate_objects
from engine.base.record_fields import BadField, text_of

MOST_BYTES = 64 * 2**20  # of a document of plain text, as of a line of records
_PLAIN = (".txt", ".txt.gz")
_BLANKS = b" \t\r\n"


def read_documents(path: str) -> Iterator[str]:
    """Yield the documents of a file, in order, with one of them in memory at a time.

    In a `.txt` or `.txt.gz` file, blank lines end a document; its own line breaks stay. UserError, with the line or the
    byte, for text that is not UTF-8, a record without text, a document above 64 MiB, and an empty file.
    """
    if path.endswith(_PLAIN):
        yield from _plain(Path(path))
        return
    if not path.endswith((".jsonl", ".jsonl.gz", ".json")):
        raise UserError(f"cannot read {path}: text comes in .txt, .jsonl, .json, .txt.gz or .jsonl.gz files")
    for line, fields in iterate_objects(Path(path)):
        try:
            if "text" not in fields:
                raise BadField(f"field 'text' is missing (fields: {', '.join(fields)[:60] or 'none'}): add it")
            yield text_of("'text'", fields["text"], empty_is_allowed=False)
        except BadField as bad:
            raise UserError(f"{path}:{line}: {bad}") from None


def _plain(path: Path) -> Iterator[str]:
    found = False
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for start, data in _paragraphs(file, path):
                found = True
                yield _text(path, start, data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip file is damaged or was cut short ({error}): fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    if not found:
        raise UserError(f"{path} holds no text: give a file with some")


def _paragraphs(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines between blank ones, joined, each with the byte of the file at which it starts."""
    lines: list[bytes] = []
    at = start = size = 0
    while line := file.readline(MOST_BYTES + 1):
        begins, at = at, at + len(line)
        if begins == 0 and line.startswith(b"\xef\xbb\xbf"):
            begins, line = 3, line[3:]
        if line.strip(_BLANKS):
            start = start if lines else begins
            lines.append(line)
            size += len(line)
            if size > MOST_BYTES:
                raise UserError(
                    f"{path}: the document at byte {start} is above {MOST_BYTES >> 20} MiB: "
                    "put a blank line between documents, or write one a line as JSON Lines"
                )
        elif lines:
            yield start, b"".join(lines)
            lines, size = [], 0
    if lines:
        yield start, b"".join(lines)


def _text(path: Path, start: int, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: byte {start + error.start} is not UTF-8; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")
