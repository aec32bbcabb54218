"""JSON that says one thing only: no key given twice, no NaN, nothing before or behind it."""

from __future__ import annotations

import json
import re
from typing import Any

_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def parse_json(text: str) -> Any:
    """The value of a JSON text. ValueError, in one line, for anything else."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
