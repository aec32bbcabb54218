"""Check that a translation is in its language: no English left in it, the right script, no similar language."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

from datagen.text.kept_parts import split_parts
from datagen.text.words import unicode_words
from engine.base.languages import LANGUAGES, Language
from engine.base.scripts import main_script

_MIN_SCRIPT_SHARE = 0.7
_MIN_SCRIPT_LETTERS = 8

# Function words: names and lists do not consist of them.
_ENGLISH_WORDS = frozenset(
    unicode_words(
        "the of and is are was were to that with for this these you your it its as by from have has had be been which"
        " what how why when who not can should would will they their there he she his her them or an at we our do does"
    )
)
_MIN_COPIED_WORDS = 8
# Latin runs and other runs separately: Chinese puts no space around a Latin name.
_WORD = re.compile(r"[0-9A-Za-z_\u00c0-\u024f]+|[^\W0-9A-Za-z_\u00c0-\u024f]+")

# Languages that a wrong translation may be in, besides ours. Without Bosnian and Malay: the identifier cannot tell a
# paragraph of them from Croatian, Serbian or Indonesian.
_NEIGHBOURS = tuple(unicode_words("be bg mk cs sl pl pt gl no nn sv af fa ur as ja ko gu pa"))
# A sentence may be valid in both, so the relative is no fault: Croatian in place of Serbian passes.
_RELATIVES = {"hr": {"sr"}, "sr": {"hr", "mk"}}
_MIN_LETTERS = {"zh": 15}
_MIN_LETTERS_OTHERWISE = 30
# Smallest p(own language) / p(likeliest language): all 1,847 kit sentences of at least 30 letters reach 0.3.
_MIN_RATIO, _MIN_RATIO_OF_SHORT_TEXT, _SHORT = 0.3, 0.1, 50


def language_fault(source: str, target: str, language: Language) -> str | None:
    """Return why a translation of an English text is not in `language`, or None if it seems to be.

    Ignores code, URLs and placeholders. The script and language checks also ignore words that the source contains:
    names, acronyms and quotations stay as they are. The language check needs 30 letters (15 in Chinese).
    """
    before, after = split_parts(source).prose, split_parts(target).prose
    return (
        _english_left(before, after)
        or script_fault(_without_words_of(before, after), language)
        or _wrong_language(_without_words_of(before, after), language)
    )


def script_fault(text: str, language: Language) -> str | None:
    """Return a message if less than 70 % of the letters are in one script of the language; None below 8 letters."""
    found = main_script(language.scripts, text)
    if found is None or sum(map(str.isalpha, text)) < _MIN_SCRIPT_LETTERS or found[1] >= _MIN_SCRIPT_SHARE:
        return None
    return f"script: {found[1]:.0%} of the letters are {' or '.join(language.scripts)}"


def _english_left(source: str, target: str) -> str | None:
    """Return a message if the target is the English source or copies eight of its words in a row, else None."""
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", source)
    common = [word for word in words if word.lower() in _ENGLISH_WORDS]
    plain = [word for word in words if len(word) > 2 and word.islower()]
    if source.split() == target.split() and ((common and len(words) > 1) or len(plain) >= 3):
        return "left in English"
    before, after = " ".join(unicode_words(source)), unicode_words(target)
    for start in range(len(after) - _MIN_COPIED_WORDS + 1):
        copied = after[start : start + _MIN_COPIED_WORDS]
        if len(_ENGLISH_WORDS.intersection(copied)) >= 2 and f" {' '.join(copied)} " in f" {before} ":
            return f"left in English: {' '.join(copied)!r:.60}"
    return None


def _without_words_of(source: str, target: str) -> str:
    """Return the target without the words that the source contains."""
    known = set(_WORD.findall(source.casefold()))
    return _WORD.sub(lambda word: " " if word[0].casefold() in known else word[0], target)


def _wrong_language(text: str, language: Language) -> str | None:
    identifier = _identifier()
    letters = sum(unicodedata.category(character)[0] in "LM" for character in text)
    if letters < _MIN_LETTERS.get(language.code, _MIN_LETTERS_OTHERWISE) or language.code not in identifier.labels:
        return None
    probabilities = {code: p for code, p in identifier.rank(text) if code not in _RELATIVES.get(language.code, ())}
    best = max(probabilities, key=probabilities.__getitem__)
    min_ratio = _MIN_RATIO_OF_SHORT_TEXT if letters < _SHORT else _MIN_RATIO
    if probabilities[language.code] >= min_ratio * probabilities[best]:
        return None
    name = LANGUAGES[best].name if best in LANGUAGES else best
    return f"language: looks like {name}"


@functools.cache
def _identifier() -> Any:
    """Load py3langid's bundled model (Lui and Baldwin 2012), limited to our languages and similar ones."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages({code for code in [*LANGUAGES, *_NEIGHBOURS] if code in identifier.labels})
    return identifier
