"""Checked fields of a record, whose faults are a sentence without file and line."""

from __future__ import annotations

import reprlib
from typing import Any

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 60
short = _shortener.repr


class BadField(Exception):
    """A fault of a record, without its file and line."""


def text_of(name: str, value: Any, empty_is_allowed: bool) -> str:
    """Return a string that can be written as UTF-8. BadField for anything else; `name` is the field's, quoted."""
    if not isinstance(value, str):
        raise BadField(f"field {name} is {short(value)}: it must be a string")
    if not empty_is_allowed and not value.strip():
        raise BadField(f"field {name} is empty ({short(value)}): fill it or drop the record")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadField(
                f"field {name} holds half a surrogate pair, {short(value[error.start])}, at character "
                f"{error.start + 1}: the text was cut inside a character; fix it or drop the record"
            ) from None
    return value
