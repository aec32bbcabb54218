"""Number words of our languages: which word says which number, in its inflected and compound forms."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from datagen.kits import kit_codes, load_kit

FILE = Path(__file__).with_name("number_words.json")
# What multiplies the number before it: ten in Vietnamese and Indonesian only, where two ten is twenty.
TIMES, PLUS = "x", "+"

_ARABIC = str.maketrans(
    dict.fromkeys("\u0640\u064b\u064c\u064d\u064e\u064f\u0650\u0651\u0652")
    | {"أ": "ا", "إ": "ا", "آ": "ا", "ى": "ي", "ة": "ه"}
)
_ARABIC_PREFIX = re.compile(r"^[وف]?[بلك]?(?:ال|ل)?")
_SERBIAN = str.maketrans(
    dict(zip("абвгдђежзијклмнопрстћуфхцчш", "abvgdđežzijklmnoprstćufhcčš")) | {"љ": "lj", "њ": "nj", "џ": "dž"}
)
# Joiners, soft hyphens, and the dot beneath Devanagari and Bengali letters, which many writers leave out.
_UNSEEN = str.maketrans(dict.fromkeys("\u200b\u200c\u200d\u2060\u00ad\u093c\u09bc"))


@dataclass(frozen=True)
class Atom:
    """What one word, or a piece of a compound one, says: value, or an operation on the number before it, or a part.

    value   5 of "five"; None for a part
    sign    TIMES for a value that multiplies the number before it, PLUS for one that is added
    part    1/2 of "half", 1/4 of "quarter"; None otherwise
    """

    value: Fraction | None
    sign: str = ""
    part: Fraction | None = None


@dataclass(frozen=True)
class Lexicon:
    """The number words of one language, as `plain_words` leaves them.

    whole, stems   word, or its beginning -> atom; None where the word is no number for all its beginning
    phrases        several words, whether the last one is a beginning, and their atom, by the first word
    inside         what marks a half anywhere in a word ("న్నర")
    links          what may stand between two numbers of one ("and")
    """

    whole: dict[str, Atom | None] = field(default_factory=dict)
    stems: dict[str, Atom | None] = field(default_factory=dict)
    phrases: dict[str, list[tuple[tuple[str, ...], bool, Atom]]] = field(default_factory=dict)
    inside: tuple[str, ...] = ()
    links: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.whole or self.stems)


def plain_words(text: str, lang: str) -> str:
    """The text as the lexicon of the language is: lower case, one form of each letter, no marks that come and go."""
    text = unicodedata.normalize("NFC", text.casefold()).translate(_UNSEEN).replace("\u2019", "'").replace("\u02bc", "'")
    if lang == "ar":
        return text.translate(_ARABIC)
    if lang == "sr":
        return text.translate(_SERBIAN)
    return text if lang == "uk" else text.replace("'", " ")


@functools.lru_cache(maxsize=64)
def lexicon(lang: str) -> Lexicon:
    """The words of number_words.json, and those that the language's kit has for 0 to 30; empty where there are none."""
    words = Lexicon(links=frozenset(_entries(lang).get("+", "").split()), inside=_inside(lang))
    if lang in kit_codes():
        for value, number in enumerate(load_kit(lang).numbers):
            _enter(words, plain_words(number, lang).replace("-", " ").split(), False, Atom(Fraction(value)))
    for key, forms in _entries(lang).items():
        if key == PLUS:
            continue
        for form in forms.split():
            if not form.startswith("*"):
                texts = plain_words(form.rstrip("*"), lang).split("_")
                _enter(words, texts, form.endswith("*"), _atom(key))
    return words


@functools.cache
def _all_entries() -> dict[str, dict[str, str]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _entries(lang: str) -> dict[str, str]:
    return _all_entries().get(lang, {})


def _inside(lang: str) -> tuple[str, ...]:
    return tuple(plain_words(form.strip("*"), lang) for form in _entries(lang).get("1/2", "").split() if form[0] == "*")


def _atom(key: str) -> Atom | None:
    if key == "-":
        return None
    if key[0] in (TIMES, PLUS):
        return Atom(Fraction(key[1:]), key[0])
    value = Fraction(key)
    if value < 1:
        return Atom(None, part=value)
    return Atom(value, TIMES if value in (100, 1000) or value > 1000 and value % 10_000 == 0 else "")


def _enter(words: Lexicon, texts: list[str], is_stem: bool, atom: Atom | None) -> None:
    if len(texts) > 1:
        words.phrases.setdefault(texts[0], []).append((tuple(texts), is_stem, atom))
        return
    table = words.stems if is_stem else words.whole
    known = table.get(texts[0])
    if known and atom and atom.part:  # "quarter": a fourth of something, or the fourth
        atom = Atom(known.value, known.sign, atom.part)
    table[texts[0]] = atom


def atoms_of(word: str, lang: str) -> list[Atom]:
    """What a word says, piece by piece (German fünfundzwanzig: 5, 20); [] for a word that is no number."""
    found = _atoms(word, lang)
    if not found and lang == "ar" and (rest := _ARABIC_PREFIX.sub("", word)) != word:
        found = _atoms(rest, lang)
    if any(mark in word for mark in lexicon(lang).inside) and found:
        return [*found, Atom(None, part=Fraction(1, 2))]
    if not found and any(mark in word for mark in lexicon(lang).inside):
        return [Atom(None, part=Fraction(1, 2))]
    return list(found)


@functools.lru_cache(maxsize=65536)
def _atoms(word: str, lang: str) -> tuple[Atom, ...]:
    """The longest beginning that is a number, and what follows it if that is one to its end."""
    words = lexicon(lang)
    for end in range(len(word), 0, -1):
        start, rest = word[:end], word[end:]
        is_whole, is_stem = start in words.whole, start in words.stems
        if not (is_whole or is_stem):
            continue
        atom = words.stems[start] if is_stem else words.whole[start]
        if not rest:
            atom = words.whole[start] if is_whole else atom
            return (atom,) if atom else ()
        if atom is None:
            if is_stem:
                return ()
            continue
        for link in ("", *words.links):
            if rest.startswith(link) and (more := _atoms(rest[len(link) :], lang)):
                return (atom, *more)
        if is_stem:
            return (atom,)
    return ()
