"""Prompt templates: text files with `$name` placeholders, checked before the first request."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from engine.base.errors import UserError

TEMPLATES_DIR = Path(__file__).parents[1] / "templates"


def read_template(
    path: Path, needed: Sequence[str], optional: Sequence[str] = (), flag: str = "--template"
) -> string.Template:
    """Read a template file. UserError if it is unreadable, lacks a needed name or has an unknown name.

    `$name` or `${name}` is a placeholder, `$$` is a dollar sign.
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
        raise UserError(f"{flag} {path} has a $ without a name: write $$ for a dollar sign") from None
    if unknown:
        raise UserError(f"{flag} {path} has ${unknown[0]}: the names are ${', $'.join(names)}; $$ is a dollar sign")
    if missing := [name for name in needed if name not in template.get_identifiers()]:
        raise UserError(f"{flag} {path} lacks ${missing[0]}: add it; datagen/templates has examples")
    return template
