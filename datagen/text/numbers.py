"""The numbers of a text: in digits of any script, in words of its language, in Roman and Chinese numerals."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

from datagen.text.number_sums import Piece, sums
from datagen.text.number_words import Atom, Lexicon, atoms_of, lexicon, plain_words

_BETWEEN_DIGITS = ".,'\u2019\u066b\u066c\u00a0\u202f\u2009"
# 12,345.6 or, with spaces in it, 12 345,6; .5 too.
NUMBER = re.compile(rf"(?:(?<![\w.])\.)?\d+(?:(?:[{_BETWEEN_DIGITS}]|(?<!\d\d\d\d) (?=\d\d\d(?!\d)))\d+)*", re.ASCII)
# Vowel signs are no letters to Python: the Indian blocks, but for their full stops, are taken whole.
_LETTER = r"[^\W\d_]|[\u0300-\u036f\u0900-\u0963\u0970-\u0d7f]|(?<=[^\W\d])'(?=[^\W\d])"
_TOKEN = re.compile(rf"{NUMBER.pattern}|(?:{_LETTER})+")
_GAP = re.compile(r"[\s\u2010-\u2015-]*")
_FRACTION = re.compile(r"(?<![\d/])([1-5])/([2-9])(?![\d/])")
_ROMAN = re.compile(
    r"\b(?=[MDCLXVI]{2}|[IVX](?:er|e|a|º|ª)?(?!\w))"
    r"(M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))(?=[^\W\d_A-Z]{0,3}(?!\w))"
)
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_CYRILLIC_ROMAN = str.maketrans("ХІМС", "XIMC")
_CHINESE_RUN = re.compile(
    r"(?P<digits>(?<![\d.,])\d[\d.,]{0,20}\s?)?(?P<letters>[零〇一二两兩三四五六七八九十百千万萬亿億]{1,40})"
)
_CHINESE_DIGITS = {letter: value for value, letter in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_CHINESE_PARTS = {"半": Fraction(1, 2), "四分之一": Fraction(1, 4), "一刻": Fraction(1, 4), "四分之三": Fraction(3, 4)}
_LETTER_SCALE = re.compile(r"(?:(k)|(mn|m)|(bn|b))(?![^\W\d_])")
_SCALES = tuple(Fraction(scale) for scale in (1, 100, 1000, 10**5, 10**6, 10**7, 10**9, 10**12))
_DRAWN = {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3"}
_MOST_CHARACTERS = 40  # of what is taken for a number, not for a picture
_SMALL = re.compile("[⁰¹²³⁴-⁹₀-₉]+")


@dataclass(frozen=True)
class Digits:
    """A number in digits: as written (in ASCII), where, and what it may mean, a scale after it ("million") included."""

    written: str
    start: int
    end: int
    values: frozenset[Fraction]


@dataclass
class Reading:
    """The numbers of a text.

    text     as it was read: `plain_digits`, then `plain_words`
    digits   numbers in digits, in their order
    words    the values of all others, and how often each is said
    parts    halves, quarters and other fractions that are named or written as such
    """

    text: str
    digits: list[Digits] = field(default_factory=list)
    words: Counter[Fraction] = field(default_factory=Counter)
    parts: Counter[Fraction] = field(default_factory=Counter)

    def says(self, value: Fraction) -> bool:
        """Whether words say this value, also with a half or quarter: two and a half, 1.5 million, half a million."""
        if self.words[value] or self.parts[value]:
            return True
        known = {Fraction(1), *self.words}.union(*(number.values for number in self.digits))
        rests = ((value - part * scale, scale) for part in +self.parts for scale in _SCALES)
        return any(
            (rest == 0 and scale in self.words) or (rest > 0 and rest % scale == 0 and rest in known)
            for rest, scale in rests
        )


def plain_digits(text: str) -> str:
    """The text with the digits of every script as 0 to 9, small ones (m², H₂O) as "^2", and ½ as "1/2"."""
    text = _SMALL.sub(lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    text = re.sub(f"[{''.join(_DRAWN)}]", lambda drawn: _DRAWN[drawn[0]], text)
    return re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), text)


def values_of(written: str, lang: str) -> frozenset[Fraction]:
    """What a number in digits may mean: 1.234 is a decimal or a thousand; nothing for 1.2.3, which is no number.

    In English a comma stands between thousands, and a full stop before decimals.
    """
    if len(written) > _MOST_CHARACTERS:
        return frozenset()
    *whole, last = re.split(r"\D", written)
    separators = re.findall(r"\D", written)
    if not separators:
        return frozenset({Fraction(written)})
    values = set()
    grouped = len(whole[0]) <= 3 and all(len(group) in (2, 3) for group in whole[1:])
    if grouped and len(last) == 3 and whole[0] and len(set(separators)) == 1:
        values.add(Fraction("".join([*whole, last])))
    is_last_of_its_kind = len(separators) == 1 or (grouped and separators[-1] not in separators[:-1])
    if is_last_of_its_kind and not separators[-1].isspace():
        values.add(Fraction(f"{''.join(whole) or 0}.{last}"))
    if lang == "en" and len(values) == 2:
        return frozenset({min(values) if separators[-1] == "." else max(values)})
    return frozenset(values)


def read_numbers(text: str, lang: str) -> Reading:
    """Every number of a text; words are read in this language, digits and numerals in any."""
    reading = Reading(plain_words(plain_digits(text), lang), words=_roman_values(text))
    reading.parts.update(Fraction(found[0]) for found in _FRACTION.finditer(reading.text))
    reading.parts += Counter({part: reading.text.count(words) for words, part in _CHINESE_PARTS.items()})
    found = [Digits(m[0], m.start(), m.end(), values_of(m[0], lang)) for m in NUMBER.finditer(reading.text)]
    found = _with_letters(reading.text, _with_chinese(found, reading))
    scaled: dict[int, set[Fraction]] = {}
    absorbed: set[int] = set()
    for run in _runs(found, lang, reading):
        for meant in (max, min):
            for said in sums([_as_meant(piece, found, meant) for piece in run], lang):
                if said.places and said.count > 1:
                    scaled.setdefault(said.places[0], set()).add(said.value)
                    absorbed |= set(said.places[1:])
                elif not said.places:
                    reading.words[said.value] += meant is max
    reading.digits = [
        replace(number, values=frozenset(scaled.get(place, number.values)))
        for place, number in enumerate(found)
        if place not in absorbed
    ]
    return reading


def _roman_values(text: str) -> Counter[Fraction]:
    """Cyrillic letters that look like Latin ones count: both are used."""
    values: Counter[Fraction] = Counter()
    for found in _ROMAN.finditer(text.translate(_CYRILLIC_ROMAN)):
        numbers = [_ROMAN_DIGITS[letter] for letter in found[1]]
        values[Fraction(sum(-a if a < b else a for a, b in zip(numbers, [*numbers[1:], 0])))] += 1
    return values


def _with_chinese(numbers: list[Digits], reading: Reading) -> list[Digits]:
    """The numbers, with 万 or the like after them counted in; those in Chinese numerals alone go to the reading."""
    units = {}
    for found in _CHINESE_RUN.finditer(reading.text):
        if not found["digits"]:
            reading.words[_chinese_value(found["letters"], None)] += 1
        elif found["letters"][0] in _CHINESE_UNITS:
            units[found.start()] = found["letters"]
    return [
        replace(number, values=frozenset(_chinese_value(units[number.start], value) for value in number.values))
        if number.start in units
        else number
        for number in numbers
    ]


def _chinese_value(letters: str, number: Fraction | None) -> Fraction:
    """三百二十, or 万 after a number. Letters without a unit are digits in a row: 一九八四."""
    if number is None and not any(letter in _CHINESE_UNITS for letter in letters):
        return Fraction("".join(str(_CHINESE_DIGITS[letter]) for letter in letters))
    total = section = Fraction(0)
    for letter in letters:
        unit = _CHINESE_UNITS.get(letter)
        if unit is None:
            number = Fraction(_CHINESE_DIGITS[letter])
        elif unit < 10**4:
            section, number = section + (1 if number is None else number) * unit, None
        else:
            total, section, number = (total + section + (number or 0) or 1) * unit, Fraction(0), None
    return total + section + (number or 0)


def _with_letters(text: str, numbers: list[Digits]) -> list[Digits]:
    """5k may be 5,000, 5m five million, or as many metres."""
    result = []
    for number in numbers:
        letter = _LETTER_SCALE.match(text, number.end)
        scale = 1000**letter.lastindex if letter else 1
        result.append(replace(number, values=number.values | {value * scale for value in number.values}))
    return result


def _as_meant(piece: Piece, numbers: list[Digits], meant: Callable[[frozenset[Fraction]], Fraction]) -> Piece:
    """The piece with a value, where it is a number in digits: the larger or the smaller one that it may have."""
    if piece.place is None or not numbers[piece.place].values:
        return piece
    return piece._replace(value=meant(numbers[piece.place].values))


def _runs(numbers: list[Digits], lang: str, reading: Reading) -> Iterator[list[Piece]]:
    """Numbers that stand together, with nothing but spaces, hyphens and "and" between; parts go to the reading."""
    words, places = lexicon(lang), {number.start: place for place, number in enumerate(numbers)}
    run: list[Piece] = []
    end = 0
    for start, stop, token in _tokens(reading.text, words):
        # An Arabic preposition is written together with its word, and begins another number.
        is_apart = lang == "ar" and isinstance(token, str) and token[0] in "بلك" and not words.whole.get(token)
        if run and (is_apart or not _GAP.fullmatch(reading.text, end, start)):
            yield run
            run = []
        if run and token in words.links:
            end = stop
            continue
        if start in places:
            pieces = [Piece(Fraction(0), place=places[start])]
        else:
            atoms = [token] if isinstance(token, Atom) else atoms_of(token, lang)
            reading.parts.update(atom.part for atom in atoms if atom.part)
            # A part alone is read; after a number it belongs to it.
            known = [atom for atom in atoms if atom.value is not None or run]
            pieces = [
                Piece(atom.part, is_part=True) if atom.value is None else Piece(atom.value, atom.sign) for atom in known
            ]
        if not pieces:
            yield run
            run = []
        run += pieces
        end = stop
    yield run


def _tokens(text: str, words: Lexicon) -> Iterator[tuple[int, int, str | Atom]]:
    """Start, end and text of each word or number; words that are one phrase as their atom."""
    tokens = list(_TOKEN.finditer(text))
    place = 0
    while place < len(tokens):
        said: str | Atom = tokens[place][0]
        length = 1
        for phrase, is_stem, atom in words.phrases.get(tokens[place][0], ()):
            texts = [token[0] for token in tokens[place : place + len(phrase)]]
            if is_stem and len(texts) == len(phrase):
                texts[-1] = texts[-1][: len(phrase[-1])]
            if tuple(texts) == phrase and len(phrase) > length:
                said, length = atom, len(phrase)
        yield tokens[place].start(), tokens[place + length - 1].end(), said
        place += length
