"""Scripts: whether a benchmark file is written in the script of the language it is given for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import islice

from engine.errors import UserError
from engine.languages import Language

# How the Unicode names of a script's letters begin. Latin is in every text (formulas, names), so that a file in it is
# told by the share of the others.
_NAMES = {
    "Latn": ("LATIN",),
    "Cyrl": ("CYRILLIC",),
    "Arab": ("ARABIC",),
    "Deva": ("DEVANAGARI",),
    "Beng": ("BENGALI",),
    "Taml": ("TAMIL",),
    "Mlym": ("MALAYALAM",),
    "Telu": ("TELUGU",),
    "Knda": ("KANNADA",),
    "Hans": ("CJK",),
    "Hant": ("CJK",),
}
_SAMPLE = 200
_LEAST_SHARE = 0.2


def share_of_script(language: Language, texts: Iterable[str]) -> float | None:
    """Share of the letters that are in the language's script; None for a script not in the table, or no letters."""
    if language.script not in _NAMES:
        return None
    letters = [char for text in texts for char in text if char.isalpha()]
    if not letters:
        return None
    return sum(unicodedata.name(char, "").startswith(_NAMES[language.script]) for char in letters) / len(letters)


def check_script(language: Language, name: str, texts: Iterable[str]) -> None:
    """UserError if the first 200 texts are hardly in the language's script: a file of another language."""
    share = share_of_script(language, islice(texts, _SAMPLE))
    if share is not None and share < _LEAST_SHARE:
        raise UserError(
            f"{name}: {share:.0%} of its letters are in the script of {language.name} ({language.script}): "
            f"is it a file of another language? give the {language.code} file, or the right --lang"
        )
