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
TIMES, PLUS, ENDING = "x", "+", "~"

_MOST_LETTERS = 60  # of a word that may be a number
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
    inside         what marks a half or a quarter anywhere in a word ("న్నర"), with its atom
    links          what may stand between two numbers of one ("and")
    endings        what may follow a whole word
    """

    whole: dict[str, Atom | None] = field(default_factory=dict)
    stems: dict[str, Atom | None] = field(default_factory=dict)
    phrases: dict[str, list[tuple[tuple[str, ...], bool, Atom]]] = field(default_factory=dict)
    inside: dict[str, Atom] = field(default_factory=dict)
    links: frozenset[str] = frozenset()
    endings: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.whole or self.stems)


def plain_words(text: str, lang: str) -> str:
    """The text as the lexicon of the language is: lower case, one form of each letter, no marks that come and go."""
    text = (
        unicodedata.normalize("NFC", text.casefold()).translate(_UNSEEN).replace("\u2019", "'").replace("\u02bc", "'")
    )
    if lang == "ru":
        return text.replace("ё", "е").replace("'", " ")
    if lang == "ar":
        return text.translate(_ARABIC)
    if lang == "sr":
        return text.translate(_SERBIAN)
    return text if lang == "uk" else text.replace("'", " ")


@functools.lru_cache(maxsize=64)
def lexicon(lang: str) -> Lexicon:
    """The words of number_words.json, and those that the language's kit has for 0 to 30; empty where there are none."""
    links, endings = (frozenset(plain_words(_entries(lang).get(key, ""), lang).split()) for key in (PLUS, ENDING))
    words = Lexicon(links=links, endings=endings)
    if lang in kit_codes():
        for value, number in enumerate(load_kit(lang).numbers):
            _enter(words, plain_words(number, lang).replace("-", " ").split(), False, Atom(Fraction(value)))
    for key, forms in _entries(lang).items():
        if key in (PLUS, ENDING):
            continue
        for form in forms.split():
            if form.startswith("*"):
                words.inside[plain_words(form.strip("*"), lang)] = _atom(key)
            else:
                texts = plain_words(form.rstrip("*"), lang).split("_")
                _enter(words, texts, form.endswith("*"), _atom(key))
    return words


@functools.cache
def _all_entries() -> dict[str, dict[str, str]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _entries(lang: str) -> dict[str, str]:
    return _all_entries().get(lang, {})


def _atom(key: str) -> Atom | None:
    if key == "-":
        return None
    if key[0] in (TIMES, PLUS):
        return Atom(Fraction(key[1:]), key[0])
    value = Fraction(key)
    if 0 < value < 1:
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
    marks = {atom for mark, atom in lexicon(lang).inside.items() if mark in word}
    return [*found, *(marks - set(found))]


@functools.lru_cache(maxsize=65536)
def _atoms(word: str, lang: str) -> tuple[Atom, ...]:
    """The longest beginning that is a number, and what follows it if that is one too."""
    words = lexicon(lang)
    if len(word) > _MOST_LETTERS:
        return ()
    if word in words.whole:
        return (words.whole[word],) if words.whole[word] else ()
    for end in range(len(word), 0, -1):
        start, rest = word[:end], word[end:]
        is_stem = start in words.stems
        atom = words.stems[start] if is_stem else words.whole.get(start)
        if is_stem and (atom is None or not rest):
            return (atom,) if atom else ()
        if atom is None:
            continue
        for link in ("", *words.links):
            if rest.startswith(link) and (more := _atoms(rest[len(link) :], lang)):
                return (atom, *more)
        if is_stem or rest in words.endings:
            return (atom,)
    return ()
