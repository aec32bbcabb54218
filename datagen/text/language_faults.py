"""Whether a translation is in its language: script, English left in it, a language that is easily taken for it."""

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

# Words that no name and no list consists of.
_ENGLISH_WORDS = frozenset(
    unicode_words(
        "the of and is are was were to that with for this these you your it its as by from have has had be been which"
        " what how why when who not can should would will they their there he she his her them or an at we our do does"
    )
)
_MIN_COPIED_WORDS = 8
# Latin letters or others: in Chinese no space parts a name from what is around it.
_WORD = re.compile(r"[0-9A-Za-z_\u00c0-\u024f]+|[^\W0-9A-Za-z_\u00c0-\u024f]+")

# What else a text in one of our languages may turn out to be. Bosnian and Malay are left out: by the letters of a
# paragraph they are Croatian or Serbian, and Indonesian.
_NEIGHBOURS = tuple(unicode_words("be bg mk cs sl pl pt gl no nn sv af fa ur as ja ko gu pa"))
# A sentence may well be both, so that one is not held against the other: Croatian in place of Serbian is not found.
_RELATIVES = {"hr": {"sr"}, "sr": {"hr", "mk"}}
_MIN_LETTERS = {"zh": 15}
_MIN_LETTERS_OTHERWISE = 30
# Against the likeliest language: none of the 1,847 kit sentences of 30 letters and more has less than 0.3 in its own.
_LEAST_ODDS, _LEAST_ODDS_IN_SHORT_TEXTS, _SHORT = 0.3, 0.1, 50


def language_fault(source: str, target: str, language: Language) -> str | None:
    """Why a translation of an English text is not in the language, in a few words; None if it seems to be.

    Code, URLs and placeholders are not looked at, nor, for the script and the language, words that the source has too:
    names, acronyms and quotations stay as they are. Short texts can only be told by their script.
    """
    before, after = split_parts(source).prose, split_parts(target).prose
    return (
        _english_left(before, after)
        or script_fault(_without_words_of(before, after), language)
        or _identity_fault(_without_words_of(before, after), language)
    )


def script_fault(text: str, language: Language) -> str | None:
    """A text whose letters are mostly of no one script of the language's; None for one with too few letters."""
    found = main_script(language.scripts, text)
    if found is None or sum(map(str.isalpha, text)) < _MIN_SCRIPT_LETTERS or found[1] >= _MIN_SCRIPT_SHARE:
        return None
    return f"script: {found[1]:.0%} of the letters are {' or '.join(language.scripts)}"


def _english_left(source: str, target: str) -> str | None:
    """The whole text, or eight of its words in a row, as they were."""
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
    """The target without the words that the source has too."""
    known = set(_WORD.findall(source.casefold()))
    return _WORD.sub(lambda word: " " if word[0].casefold() in known else word[0], target)


def _identity_fault(text: str, language: Language) -> str | None:
    identifier = _identifier()
    letters = sum(unicodedata.category(character)[0] in "LM" for character in text)
    if letters < _MIN_LETTERS.get(language.code, _MIN_LETTERS_OTHERWISE) or language.code not in identifier.labels:
        return None
    probabilities = {code: p for code, p in identifier.rank(text) if code not in _RELATIVES.get(language.code, ())}
    best = max(probabilities, key=probabilities.__getitem__)
    least = _LEAST_ODDS_IN_SHORT_TEXTS if letters < _SHORT else _LEAST_ODDS
    if probabilities[language.code] >= least * probabilities[best]:
        return None
    name = LANGUAGES[best].name if best in LANGUAGES else best
    return f"language: looks like {name}"


@functools.cache
def _identifier() -> Any:
    """py3langid's bundled model (Lui and Baldwin 2012), for our languages and their neighbours; loaded when needed."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages({code for code in [*LANGUAGES, *_NEIGHBOURS] if code in identifier.labels})
    return identifier
