"""Build HTML safely: everything that is not Markup is escaped as text."""

from __future__ import annotations

import html
import re

_VOID = {"meta"}
# Characters that HTML forbids, and halves of surrogate pairs, which UTF-8 cannot encode. Line breaks and tabs stay.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Markup(str):
    """HTML that this file has built."""


def text(value: object) -> Markup:
    """Escape a value; characters that HTML forbids become U+FFFD."""
    return Markup(html.escape(_NOT_TEXT.sub("\ufffd", str(value))))


def join(*children: object) -> Markup:
    """Join children, each escaped unless it is Markup."""
    return Markup("".join(c if isinstance(c, Markup) else text(c) for c in children))


def tag(name: str, /, *children: object, **attributes: str | None) -> Markup:
    """Return an element. Attributes of None are left out; `class_` and `data_label` become class and data-label."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>\n")
