"""Strict JSON: no duplicate keys, no NaN, no depth above 100; and a file with one object of bounded size.

Duplicate keys are ambiguous, NaN is not JSON, and deep nesting ends as a RecursionError in later code. All three are
refused while reading.
"""

from __future__ import annotations

import json
import re
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from engine.base.errors import UserError

MAX_DEPTH = 100
OBJECT_BYTES = 64 * 2**20
_BLANKS = " \t\r\n"
_LONGEST_REASON = 160  # characters
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # only an escape can write one
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class TooDeep(JSONDecodeError):
    """Nested deeper than MAX_DEPTH; the position is the first bracket too many."""


def parse(text: str, start: int = 0) -> tuple[Any, int]:
    """Return the JSON value that starts there, and its end. ValueError, in one line, for JSON that is not strict."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise _too_deep(text, start, len(text)) from None
    # Count brackets first: only a text with many is walked.
    if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _is_deep(value):
        raise _too_deep(text, start, end)
    return value, end


def parse_whole(text: str, any_text: bool = False) -> Any:
    """Parse a text that is one JSON value. ValueError, in one line, also for text after it.

    any_text: strings may contain half a surrogate pair, which UTF-8 cannot encode; otherwise that is an error.
    """
    value, end = parse(text, len(text) - len(text.lstrip(_BLANKS)))
    if rest := text[end:].lstrip(_BLANKS):
        raise JSONDecodeError("more text after the value", text, len(text) - len(rest))
    if not any_text and _SURROGATE.search(text) and not is_utf8(value):
        raise ValueError("a text holds half a surrogate pair")
    return value


def is_utf8(value: Any) -> bool:
    """Return whether a JSON value can be written as UTF-8 (no string has half a surrogate pair)."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_object(
    path: Path, next_step: str = "download it again", limit_bytes: int = OBJECT_BYTES, what: str = ""
) -> dict[str, Any]:
    """Read a UTF-8 file that holds one JSON object; a byte-order mark is allowed.

    UserError, with the line if known, for a file that cannot be read, is above limit_bytes, or holds anything else
    (also half a surrogate pair). what: the flag that named the file, for the message.
    """
    shown = f"{what} {path}".strip()
    try:
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except (OSError, ValueError) as error:  # a name with a NUL byte raises ValueError
        raise UserError(f"{shown} cannot be read ({reason_of(error)}): {next_step}") from error
    if len(data) > limit_bytes:
        raise UserError(f"{shown} is above {shown_size(limit_bytes)}, which no such file needs: {next_step}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"line {line}: byte 0x{data[error.start]:02x} is not UTF-8"
        raise UserError(f"{shown} cannot be read as JSON ({byte}): {next_step}") from None
    try:
        value = parse_whole(text)
    except JSONDecodeError as error:
        raise UserError(f"{shown} cannot be read as JSON (line {error.lineno}: {error.msg}): {next_step}") from None
    except ValueError as error:
        raise UserError(f"{shown} cannot be read as JSON ({reason_of(error)}): {next_step}") from None
    if not isinstance(value, dict):
        raise UserError(f"{shown} must hold one JSON object, not {type(value).__name__}: {next_step}")
    return value


def is_number(value: object) -> bool:
    """Return whether a JSON value is a number (not a boolean) small enough for finite sums."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e100 < value < 1e100


def shown_size(size_bytes: int) -> str:
    """Format bytes in the largest whole unit: "64 MiB"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes} bytes"


def reason_of(error: BaseException) -> str:
    """Shorten an error's message to one line that fits into ours."""
    words = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return words[:_LONGEST_REASON] or type(error).__name__


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _too_deep(text: str, start: int, end: int) -> TooDeep:
    depth, at = 0, start
    for token in _TOKENS.finditer(text, start, end):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            at = token.start()
            break
    return TooDeep(f"nested deeper than {MAX_DEPTH}", text, at)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"field {twice!r:.60} is given twice")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
