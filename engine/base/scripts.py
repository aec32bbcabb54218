"""Which script a text is written in, by the Unicode names of its letters."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence

# ISO 15924 -> the first words of its letters' Unicode names. Japanese and Korean texts mix theirs; simplified and
# traditional Chinese characters cannot be told apart by name.
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
    """Which of the scripts has most of the text's letters, and its share of them; the first of equals.

    One script at a time: a text whose halves are in two scripts is in neither of them. None where a script is not in
    the table, so that nothing can be said, and for a text without letters.
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
