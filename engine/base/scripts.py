"""Find the script of a text by the Unicode names of its letters."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence

# ISO 15924 -> first words of its letters' Unicode names. Japanese and Korean mix several; simplified and traditional
# Chinese characters have the same names.
_NAMES = {
    "Arab": ("ARABIC",),
    "Armn": ("ARMENIAN",),
    "Beng": ("BENGALI",),
    "Cyrl": ("CYRILLIC",),
    "Deva": ("DEVANAGARI",),
    "Ethi": ("ETHIOPIC",),
    "Geor": ("GEORGIAN",),
    "Grek": ("GREEK",),
    "Gujr": ("GUJARATI",),
    "Guru": ("GURMUKHI",),
    "Hans": ("CJK", "IDEOGRAPHIC"),
    "Hant": ("CJK", "IDEOGRAPHIC"),
    "Hebr": ("HEBREW",),
    "Jpan": ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "Khmr": ("KHMER",),
    "Knda": ("KANNADA",),
    "Kore": ("HANGUL", "CJK"),
    "Laoo": ("LAO",),
    "Latn": ("LATIN",),
    "Mlym": ("MALAYALAM",),
    "Mymr": ("MYANMAR",),
    "Orya": ("ORIYA",),
    "Sinh": ("SINHALA",),
    "Taml": ("TAMIL",),
    "Telu": ("TELUGU",),
    "Thai": ("THAI",),
}


def main_script(scripts: Sequence[str], text: str) -> tuple[str, float] | None:
    """Return the script with most of the text's letters, and its share of them; ties go to the first.

    None for a script outside the table and for a text without letters.
    """
    if any(script not in _NAMES for script in scripts):
        return None
    counts = Counter(_name(letter) for letter in text if letter.isalpha())
    if not counts:
        return None
    found = {script: sum(counts[name] for name in _NAMES[script]) for script in scripts}
    best = max(found, key=found.__getitem__)
    return best, found[best] / counts.total()


@functools.lru_cache(maxsize=65536)
def _name(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0]
