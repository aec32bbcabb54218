"""Parse the JSON object that a model was asked for out of its answer."""

from __future__ import annotations

import re
from typing import Any

from engine.base.strict_json import parse_whole

_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def parse_answer_object(text: str) -> dict[str, Any]:
    """Return the JSON object of the text, bare or in one code fence. ValueError, in one line, for anything else.

    Accepts the fence because it is unambiguous. Never repairs text around the object, a repeated key, half a surrogate
    pair or a cut-off object.
    """
    fenced = _FENCED.fullmatch(text)
    value = parse_whole(fenced.group(1) if fenced else text)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was asked for, not {type(value).__name__}")
    return value
