"""HTML that cannot be broken by what it shows: whatever is not Markup already is text, and escaped."""

from __future__ import annotations

import html
import re

_VOID = {"meta"}
# What HTML forbids, and halves of surrogate pairs, which UTF-8 cannot hold. Line breaks and tabs stay.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Markup(str):
    """HTML that was put together here."""


def text(value: object) -> Markup:
    """The value as it is to be read: escaped, characters that HTML forbids as U+FFFD."""
    return Markup(html.escape(_NOT_TEXT.sub("\ufffd", str(value))))


def join(*children: object) -> Markup:
    """Children one after another, each escaped unless it is Markup."""
    return Markup("".join(c if isinstance(c, Markup) else text(c) for c in children))


def tag(name: str, /, *children: object, **attributes: str | None) -> Markup:
    """An element. An attribute of None is left out; `class_` and `data_label` become class and data-label."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>\n")
