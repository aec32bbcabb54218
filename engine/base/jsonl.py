"""Read JSON objects one by one with their line numbers, and write them atomically."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from engine.base.atomic import whole_file
from engine.base.errors import UserError
from engine.base.strict_json import TooDeep, parse

MAX_LINE_BYTES = 64 * 2**20
MAX_LIST_BYTES = 2**30
_LIST_SUFFIX = ".json"
_LINE_SUFFIXES = (".jsonl", ".jsonl.gz")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = re.compile(r"[ \t\r\n]*")


def iterate_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Iterate over the JSON objects of a `.jsonl`, `.jsonl.gz` or `.json` file, each with its first line (from 1).

    The file is opened before this returns, so a wrong path is reported at once. UserError, with the line, for text that
    is not UTF-8, bad JSON (NaN, a duplicate key, too deep nesting), a line above 64 MiB, a list above 1 GiB, or a file
    without records.
    """
    with _open(path):
        pass
    return _objects(path)


def write_objects(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as `.jsonl` or `.jsonl.gz` under a temporary name beside the path, fsync, then rename.

    Until the rename the file at the path is unchanged. UserError if a row holds NaN or a lone surrogate, or the disk
    refuses.
    """
    if not path.name.endswith(_LINE_SUFFIXES):
        raise UserError(f"cannot write {path}: the name must end in {' or '.join(_LINE_SUFFIXES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as raw:
            _write_lines(raw, rows, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}: free the space or choose another path") from error


def _write_lines(raw: BinaryIO, rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    # No file name and no time in the gzip header: equal rows give equal bytes.
    gzipped = path.suffix == ".gz"
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if gzipped else nullcontext(raw) as out:
        for number, row in enumerate(rows, start=1):
            try:
                line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
            except ValueError as error:
                message = f"row {number} is not JSON in UTF-8 ({error}): fix or drop the row"
                raise UserError(f"cannot write {path}: {message}") from error
            out.write(line + b"\n")


def _open(path: Path) -> BinaryIO:
    if path.is_dir():
        raise UserError(f"cannot read {path}: it is a directory; name a file in it")
    if not path.name.endswith((*_LINE_SUFFIXES, _LIST_SUFFIX)):
        raise UserError(f"cannot read {path}: records come in .jsonl, .jsonl.gz or .json files; convert or rename it")
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"cannot read {path}: there is no such file; check the path") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    for line, value in _lines(path) if path.name.endswith(_LINE_SUFFIXES) else _list_items(path):
        if not isinstance(value, dict):
            raise _error(path, line, f"the record is {_TYPE_WORDS[type(value)]}: it must be an object {{...}}")
        yield line, value
    if not line:
        raise UserError(f"{path} holds no records: give a file with at least one")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Parse each line that is not blank."""
    with _open(path) as stream:
        number = 0
        while data := _read(path, number + 1, stream.readline, MAX_LINE_BYTES + 1):
            number += 1
            if len(data) > MAX_LINE_BYTES:
                raise _error(path, number, f"the line is above {MAX_LINE_BYTES >> 20} MiB: write one record a line")
            if number == 1:
                data = data.removeprefix(_BYTE_ORDER_MARK)
            text = _decode(path, data.rstrip(b"\r\n"), number)
            start = _BLANKS.match(text).end()
            if start == len(text):
                continue
            value, end = _parse(path, text, start, number)
            if (end := _BLANKS.match(text, end).end()) < len(text):
                raise _error(path, number, f"column {end + 1}: more text after the record: write one record a line")
            yield number, value


def _list_items(path: Path) -> Iterator[tuple[int, Any]]:
    """Parse the items of a JSON list one at a time, so that only the text and one item are in memory."""
    with _open(path) as stream:
        data = _read(path, 1, stream.read, MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise UserError(f"{path} is above {MAX_LIST_BYTES >> 30} GiB: convert the list to .jsonl, one record a line")
    text = _decode(path, data.removeprefix(_BYTE_ORDER_MARK), 1)
    del data

    line, counted, at = 1, 0, _BLANKS.match(text).end()
    if at == len(text):
        return
    if text[at] != "[":
        raise _error(path, 1, "the file is no JSON list [...]: name it .jsonl if it has one record a line")
    closed = False
    at = _BLANKS.match(text, at + 1).end()
    if text.startswith("]", at):
        closed, at = True, at + 1
    while not closed:
        line, counted = line + text.count("\n", counted, at), at
        value, at = _parse(path, text, at, line)
        yield line, value
        at = _BLANKS.match(text, at).end()
        if not text.startswith((",", "]"), at):
            line += text.count("\n", counted, at)
            raise _error(path, line, "expected ',' or ']' after the record: the list is damaged or was cut short")
        closed = text[at] == "]"
        at = _BLANKS.match(text, at + 1).end()
    if at < len(text):
        line = 1 + text.count("\n", 0, at)
        raise _error(path, line, "more text after the list: name the file .jsonl if it has one record a line")


def _read(path: Path, line: int, read: Any, limit_bytes: int) -> bytes:
    try:
        return read(limit_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _error(path, line, f"the gzip file is damaged or was cut short ({error}): fetch it again") from error
    except OSError as error:
        raise _error(path, line, f"cannot be read: {error.strerror}; check the disk") from error


def _decode(path: Path, data: bytes, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise _error(path, line, f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8") from None


def _parse(path: Path, text: str, start: int, line: int) -> tuple[Any, int]:
    """Return the JSON value that starts there, and its end."""
    try:
        return parse(text, start)
    except json.JSONDecodeError as error:
        if path.suffix == _LIST_SUFFIX:
            line = error.lineno
        if isinstance(error, TooDeep):
            hint = "flatten the record"
        elif path.suffix == _LIST_SUFFIX:
            hint = "fix the list"
        elif text[start] == "[":
            hint = "name the file .json if it is one list"
        else:
            hint = "write one whole record on each line"
        raise _error(path, line, f"column {error.colno}: bad JSON ({error.msg}): {hint}") from None
    except ValueError as error:
        raise _error(path, line, f"bad JSON ({error}): fix the record") from None


def _error(path: Path, line: int, message: str) -> UserError:
    return UserError(f"{path}:{line}: {message}")


_TYPE_WORDS = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    list: "a list",
    type(None): "null",
}
