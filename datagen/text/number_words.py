"""Number words of our languages: map a word, inflected or compound, to its value."""

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
# Marks in the keys of number_words.json. TIMES multiplies the number before it: ten does so only in Vietnamese and
# Indonesian, where "two ten" is twenty.
TIMES, PLUS, ENDING = "x", "+", "~"

_MAX_LETTERS = 60  # longer words are not numbers
_ARABIC = str.maketrans(
    dict.fromkeys("\u0640\u064b\u064c\u064d\u064e\u064f\u0650\u0651\u0652")
    | {"أ": "ا", "إ": "ا", "آ": "ا", "ى": "ي", "ة": "ه"}
)
_ARABIC_PREFIX = re.compile(r"^[وف]?[بلك]?(?:ال|ل)?")
_SERBIAN = str.maketrans(
    dict(zip("абвгдђежзијклмнопрстћуфхцчш", "abvgdđežzijklmnoprstćufhcčš")) | {"љ": "lj", "њ": "nj", "џ": "dž"}
)
# Joiners, soft hyphens, and the dot below Devanagari and Bengali letters, which many writers leave out.
_INVISIBLE = str.maketrans(dict.fromkeys("\u200b\u200c\u200d\u2060\u00ad\u093c\u09bc"))


@dataclass(frozen=True)
class Atom:
    """The meaning of a number word, or of one component of a compound word.

    value   5 for "five"; None for a fraction
    sign    TIMES if the value multiplies the number before it, PLUS if it is added, "" otherwise
    part    1/2 for "half", 1/4 for "quarter"; None otherwise
    """

    value: Fraction | None
    sign: str = ""
    part: Fraction | None = None


@dataclass(frozen=True)
class Lexicon:
    """The number words of one language, normalized by `plain_words`.

    whole, stems   word or prefix of a word -> atom; None for a word that only starts like a number
    phrases        first word -> (all words, whether the last one is a prefix, atom)
    inside         marks of a half or quarter anywhere in a word ("న్నర") -> atom
    links          words between the parts of one number ("and")
    endings        suffixes that a whole word may have
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
    """Normalize a text like the lexicon of `lang`: lower case, one form per letter, no optional marks."""
    text = unicodedata.normalize("NFC", text.casefold()).translate(_INVISIBLE)
    text = text.replace("\u2019", "'").replace("\u02bc", "'")
    if lang == "ru":
        return text.replace("ё", "е").replace("'", " ")
    if lang == "ar":
        return text.translate(_ARABIC)
    if lang == "sr":
        return text.translate(_SERBIAN)
    return text if lang == "uk" else text.replace("'", " ")


@functools.lru_cache(maxsize=64)
def lexicon(lang: str) -> Lexicon:
    """Return the words of number_words.json and of the language's kit (0 to 30); empty for an unknown language."""
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
    if known and atom and atom.part:  # "quarter" is both a fraction and an ordinal
        atom = Atom(known.value, known.sign, atom.part)
    table[texts[0]] = atom


def atoms_of(word: str, lang: str) -> list[Atom]:
    """Return the atoms of a word (German fünfundzwanzig: 5, 20); [] if it is no number."""
    found = _atoms(word, lang)
    if not found and lang == "ar" and (rest := _ARABIC_PREFIX.sub("", word)) != word:
        found = _atoms(rest, lang)
    marks = {atom for mark, atom in lexicon(lang).inside.items() if mark in word}
    return [*found, *(marks - set(found))]


@functools.lru_cache(maxsize=65536)
def _atoms(word: str, lang: str) -> tuple[Atom, ...]:
    """Return the atom of the longest prefix that is a number, then the atoms of the rest if it is a number too."""
    words = lexicon(lang)
    if len(word) > _MAX_LETTERS:
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
