"""Suggest the nearest known word for a misspelt one, in the two forms that error messages use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)", to follow the word, or "" if no known word is close."""
    close = _closest(word, known)
    return f" (did you mean {close[0]}?)" if close else ""


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """Return "did you mean 'X'? ", to begin the next step, or "" if no known word is close."""
    close = _closest(word, known)
    return f"did you mean {close[0]!r}? " if close else ""


def _closest(word: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
