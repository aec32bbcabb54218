"""JSON that says one thing only: no key given twice, no NaN, nothing before or behind it."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 100  # a value nested a thousand deep would end as a RecursionError in whatever walks it
_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def parse_json(text: str) -> Any:
    """The value of a JSON text. ValueError, in one line, for anything else."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [node for node in level if isinstance(node, dict | list)]
        level = [child for node in nested for child in (node.values() if isinstance(node, dict) else node)]
    if level:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return value


def parse_answer_object(text: str) -> dict[str, Any]:
    """The one JSON object that a model was asked for, bare or in one code fence. ValueError, in one line, otherwise.

    The fence is taken off because it is unambiguous; text around the object, a key given twice or a cut-off object is
    never repaired.
    """
    fenced = _FENCED.fullmatch(text)
    value = parse_json(fenced.group(1) if fenced else text)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was asked for, not {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        raise ValueError(f"key {next(n for n, _ in pairs if n in seen or seen.add(n))!r:.60} is given twice")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
