"""Format and parse generated tasks: numbered JSON objects, one per line, parsed strictly.

    {"number": 4, "instruction": "Name a fruit.", "input": "", "output": "A pear."}

JSON marks where a field ends; in a plain list, an output may itself contain "5." or "Input:". An object that is not
exactly such a task is dropped with a reason. None is repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from engine.base.strict_json import is_utf8


class Task(NamedTuple):
    """An instruction, its input ("" if it needs none) and its output."""

    instruction: str
    input: str
    output: str


class ParsedTasks(NamedTuple):
    """The parsed answer: (number, task) pairs, and (reason, text) for each dropped part."""

    tasks: list[tuple[int, Task]]
    dropped: list[tuple[str, str]]


FIELDS = ("number", *Task._fields)
_BETWEEN = re.compile(r"(?:\s|,|\[|\]|```(?:jsonl?)?(?=\s|$))*")
_NEXT_OBJECT = re.compile(r"^[ \t]*\{", re.MULTILINE)


def format_tasks(tasks: Iterable[Task], first: int = 1) -> str:
    """Format the tasks as JSON lines, numbered from `first`."""
    rows = ({"number": number, **task._asdict()} for number, task in enumerate(tasks, first))
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def parse_tasks(text: str, first: int, count: int, was_cut: bool = False) -> ParsedTasks:
    """Parse the tasks numbered first to first + count - 1, in ascending order. The input "<noinput>" becomes "".

    List brackets, commas and code fences around tasks are skipped. was_cut: the answer ended at its token limit, so an
    unfinished last object is "cut off" instead of "not JSON".
    """
    tasks: list[tuple[int, Task]] = []
    dropped: list[tuple[str, str]] = []
    at, previous = 0, first - 1
    while (at := _BETWEEN.match(text, at).end()) < len(text):
        try:
            fields, end = _DECODER.raw_decode(text, at) if text[at] == "{" else (None, at)
        except (ValueError, RecursionError):
            fields, end = None, at
        if fields is None:
            following = _NEXT_OBJECT.search(text, at + 1)
            end = following.start() if following else len(text)
            if text[at] != "{":
                reason = "text that is no task"
            elif was_cut and not following:
                reason = "cut off"
            else:
                reason = "not JSON"
        else:
            reason = _fault(fields, previous, first + count - 1)
        if reason:
            dropped.append((reason, text[at:end].rstrip()))
        else:
            previous = fields["number"]
            input = "" if fields["input"].strip().lower() == "<noinput>" else fields["input"]
            tasks.append((previous, Task(fields["instruction"], input, fields["output"])))
        at = end
    return ParsedTasks(tasks, dropped)


def _fault(fields: dict[str, Any], previous: int, last: int) -> str | None:
    """Return why an object is not a valid task of this answer, or None if it is."""
    if missing := [name for name in FIELDS if name not in fields]:
        return f"without {' and '.join(missing)}"
    if unknown := [name for name in fields if name not in FIELDS and fields[name] not in ("", None)]:
        return f"unknown field {unknown[0]!r:.40}"
    number = fields["number"]
    if type(number) is not int:
        return "number is no whole number"
    if not all(isinstance(fields[name], str) for name in Task._fields):
        return "a field is no string"
    if not is_utf8(fields):
        return "half a surrogate pair"
    if number > last:
        return "more than were asked for"
    if number <= previous:
        return "number out of order"
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key is given twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
