"""Prompt templates: text files with `$names` that a user may replace, checked before anything is asked."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from engine.base.errors import UserError

TEMPLATES_DIR = Path(__file__).parents[1] / "templates"


def read_template(
    path: Path, needed: Sequence[str], optional: Sequence[str] = (), flag: str = "--template"
) -> string.Template:
    """The template of a file. UserError if it cannot be read, lacks a needed name or has one that nothing fills.

    `$name` or `${name}` is replaced, `$$` is a dollar sign.
    """
    try:
        template = string.Template(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}: check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{flag} {path} is not UTF-8: save it as UTF-8") from None
    names = [*needed, *optional]
    unknown = sorted(set(template.get_identifiers()) - set(names))
    try:
        template.substitute(dict.fromkeys([*names, *unknown], ""))
    except ValueError:
        raise UserError(f"{flag} {path} has a $ before no name: write $$ for a dollar sign") from None
    if unknown:
        raise UserError(f"{flag} {path} has ${unknown[0]}: the names are ${', $'.join(names)}; $$ is a dollar sign")
    if missing := [name for name in needed if name not in template.get_identifiers()]:
        raise UserError(f"{flag} {path} lacks ${missing[0]}: the model must see it; the built-in ones show how")
    return template
