"""Load language kits, the words and phrasings of the embedded data in one language, from `datagen/kits/<code>.json`.

`python -m datagen.kits [CODE ...]` prints every violation in the named kits (default: all); exit status 2 if any.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datagen.kits.rules import PLACEHOLDERS, read_kit
from engine.base.errors import UserError
from engine.base.languages import get_language

KITS_DIR = Path(__file__).parent


class Template(NamedTuple):
    """One phrasing of a task. `{placeholder}`s mark the arguments in either field; `input` may be empty."""

    instruction: str
    input: str


@dataclass(frozen=True)
class Kit:
    """A validated language kit, with the fields of its file."""

    code: str
    digits: str
    separator: str
    numbers: tuple[str, ...]
    days: tuple[str, ...]
    months: tuple[str, ...]
    even: str
    odd: str
    opposites: tuple[tuple[str, str], ...]
    categories: dict[str, tuple[str, ...]]
    texts: tuple[str, ...]
    templates: dict[str, tuple[Template, ...]]

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """The words of all categories."""
        return tuple(word for words in self.categories.values() for word in words)

    @functools.cached_property
    def category_of(self) -> dict[str, str]:
        """Word -> label of its category."""
        return {word: label for label, words in self.categories.items() for word in words}

    @functools.cached_property
    def opposite_of(self) -> dict[str, str]:
        """Word -> its opposite, both ways."""
        return {a: b for pair in self.opposites for a, b in (pair, pair[::-1])}

    def show(self, value: int | str | tuple[int | str, ...]) -> str:
        """Write a number (>= 0) in the language's digits, a word unchanged, a list with the language's separator."""
        if isinstance(value, str):
            return value
        if isinstance(value, tuple):
            return self.separator.join(self.show(item) for item in value)
        assert value >= 0, value
        return "".join(self.digits[int(digit)] for digit in str(value))


def kit_codes(folder: Path = KITS_DIR) -> list[str]:
    """Return the language codes that have a kit, sorted."""
    return sorted(path.stem for path in folder.glob("*.json"))


@functools.lru_cache(maxsize=64)
def load_kit(code: str, folder: Path = KITS_DIR) -> Kit:
    """Return the validated kit of one language, cached.

    UserError if there is no such kit, or with file and field of the first violation.
    """
    path = folder / f"{code}.json"
    if code not in kit_codes(folder):  # also rejects a path as code
        get_language(code)  # if the code is unknown, its error suggests the nearest one
        raise UserError(f"no language kit for {code!r}: choose one of {', '.join(kit_codes(folder))}, or add {path}")
    data, problems = read_kit(path)
    if problems:
        more = f" (and {len(problems) - 1} more: python -m datagen.kits {code})" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    templates = {kind: tuple(Template(**entry) for entry in data["templates"][kind]) for kind in PLACEHOLDERS}
    return Kit(
        **{name: data[name] for name in ("code", "digits", "separator", "even", "odd")},
        **{name: tuple(data[name]) for name in ("numbers", "days", "months", "texts")},
        opposites=tuple((first, second) for first, second in data["opposites"]),
        categories={label: tuple(words) for label, words in data["categories"].items()},
        templates=templates,
    )
