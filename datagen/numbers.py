"""The numbers of a text: in digits of any script, in words of its language, in Roman and Chinese numerals."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

from datagen.number_words import PLUS, TIMES, Atom, Lexicon, atoms_of, lexicon, plain_words

_BETWEEN_DIGITS = ".,'\u2019\u066b\u066c\u00a0\u202f\u2009"
# 12,345.6 or, with spaces in it, 12 345,6; .5 too.
NUMBER = re.compile(
    rf"(?:(?<![\w.])\.)?\d+(?:(?:[{_BETWEEN_DIGITS}]|(?<!\d\d\d\d) (?=\d\d\d(?!\d)))\d+)*", re.ASCII
)
# Vowel signs are no letters to Python: the Indian blocks, but for their full stops, are taken whole.
_TOKEN = re.compile(rf"{NUMBER.pattern}|(?:[^\W\d_]|[\u0300-\u036f\u0900-\u0963\u0970-\u0d7f]|(?<=[^\W\d])'(?=[^\W\d]))+")
_GAP = re.compile(r"[\s\u2010-\u2015-]*")
_FRACTION = re.compile(r"(?<![\d/])([1-5])/([2-9])(?![\d/])")
_ROMAN = re.compile(
    r"\b(?=[MDCLXVI]{2}|[IVX](?:er|e|a|º|ª)?(?!\w))"
    r"(M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))(?=[^\W\d_A-Z]{0,3}(?!\w))"
)
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_CYRILLIC_ROMAN = str.maketrans("ХІМС", "XIMC")
_CHINESE_RUN = re.compile(r"(?P<digits>\d[\d.,]*\s?)?(?P<letters>[零〇一二两兩三四五六七八九十百千万萬亿億]+)")
_CHINESE_DIGITS = {letter: value for value, letter in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_CHINESE_PARTS = {"半": Fraction(1, 2), "四分之一": Fraction(1, 4), "一刻": Fraction(1, 4), "四分之三": Fraction(3, 4)}
_LETTER_SCALE = re.compile(r"(?:(k)|(mn|m)|(bn|b))(?![^\W\d_])")
_SCALES = tuple(Fraction(scale) for scale in (1, 100, 1000, 10**5, 10**6, 10**7, 10**9, 10**12))
# Five and twenty, where the units come first.
_UNITS_FIRST = ("ar", "da", "de", "nl")
# Where a number and the next word are easily one: three hundred (and) five, or years.
_LOOSE = ("it", "vi")
_HALF, _THIRD, _QUARTER, _FIFTH = (Fraction(1, below) for below in (2, 3, 4, 5))
_DRAWN = {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3"}
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
    *whole, last = re.split(r"\D", written)
    separators = re.findall(r"\D", written)
    if not separators:
        return frozenset({Fraction(written)})
    values = set()
    grouped = len(whole[0]) <= 3 and all(len(group) in (2, 3) for group in whole[1:])
    if grouped and len(last) == 3 and whole[0] and len(set(separators)) == 1:
        values.add(Fraction("".join([*whole, last])))
    if separators[-1] not in " \u00a0\u202f\u2009" and (len(separators) == 1 or (grouped and separators[-1] not in separators[:-1])):
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
        for largest in (True, False):
            for value, places, count in _sums(run, found, largest, lang):
                if not places:
                    reading.words[value] += largest
                elif count > 1:
                    scaled.setdefault(places[0], set()).add(value)
                    absorbed |= set(places[1:])
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
        scale = 1000 ** letter.lastindex if letter else 1
        result.append(replace(number, values=number.values | {value * scale for value in number.values}))
    return result


_Piece = tuple[Atom, int | None]  # of a run: what a word says, or the place of a number in digits


def _runs(numbers: list[Digits], lang: str, reading: Reading) -> Iterator[list[_Piece]]:
    """Numbers that stand together, with nothing but spaces, hyphens and "and" between; parts go to the reading."""
    words, places = lexicon(lang), {number.start: place for place, number in enumerate(numbers)}
    run: list[_Piece] = []
    end, linked = 0, False
    for start, stop, token in _tokens(reading.text, words):
        # An Arabic preposition is written together with its word, and begins another number.
        is_apart = lang == "ar" and isinstance(token, str) and token[0] in "بلك" and not words.whole.get(token)
        if run and (is_apart or not _GAP.fullmatch(reading.text, end, start)):
            yield run
            run, linked = [], False
        if run and token in words.links:
            end, linked = stop, True
            continue
        if start in places:
            pieces: list[_Piece] = [(Atom(Fraction(0)), places[start])]
        else:
            atoms = [token] if isinstance(token, Atom) else atoms_of(token, lang)
            reading.parts.update(atom.part for atom in atoms if atom.part)
            pieces = [(atom, None) for atom in atoms if atom.value is not None or run]
        if not pieces:
            yield run
            run = []
        run = [*run, *pieces]
        end, linked = stop, False
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


def _sums(run: list[_Piece], numbers: list[Digits], largest: bool, lang: str) -> Iterator[tuple[Fraction, list[int], int]]:
    """What a run says: one number after another, each with the places of its digits and the number of its pieces.

    largest: a number in digits that may mean two things means the larger one.
    """
    total = group = None  # group: what is below the next scale
    places: list[int] = []
    count, is_digits = 0, False
    following = [*(atom.sign == TIMES for atom, _ in run[1:]), False, False]
    for (atom, place), is_scaled in zip([*run, (None, None)], following):
        value = atom.value if atom else None
        if place is not None:
            values = numbers[place].values
            value = (max if largest else min)(values) if values else None
        was, joined = (total, group), False
        if atom and atom.part:
            if group is None or (atom.part in (_QUARTER, _THIRD, _FIFTH) and group > 4):
                continue
            yield (total or 0) + group, places, count
            joined_value = group + atom.part if atom.part == _HALF else group * atom.part
            if is_digits:
                yield (total or 0) + joined_value, [], 1
            else:
                group = joined_value
            continue
        if value is None:
            pass
        elif place is not None:
            # One billion 20 million; but 3 million, 1950.
            if group is None and (total is None or is_scaled):
                group, joined = value, True
        elif atom.sign == TIMES and value >= 1000:
            if total is None or total < value:
                total, group, joined = ((total or 0) + (group or 0) or 1) * value, None, True
            elif group is not None:
                total, group, joined = total + group * value, None, True
        elif group is None:
            group, joined = value, True
        elif atom.sign == TIMES:
            group, joined = (group * value, True) if group < value or value == 10 and group < 10 else (group, False)
        elif not is_digits and _adds(group, value, atom.sign, lang):
            if lang in _LOOSE:
                yield (total or 0) + group, places, count
                yield value, [], 1
            group, joined = group + value, True
        if joined:
            count += 1
            places += [] if place is None else [place]
            is_digits = place is not None
            continue
        if was != (None, None):
            yield (was[0] or 0) + (was[1] or 0), places, count
        total, group, places, count, is_digits = None, None, [], 0, False
        if value is not None:
            group, places, count, is_digits = value, [] if place is None else [place], 1, place is not None
            if atom.sign == TIMES and value >= 1000:
                total, group = value, None


def _adds(group: Fraction, value: Fraction, sign: str, lang: str) -> bool:
    """Whether a number goes on: twenty five, five and twenty, soixante dix, three ten (thirteen in Arabic)."""
    if value.denominator > 1 or value <= 0:
        return False
    if sign == PLUS:
        return group < 10
    if lang == "fr" and group in (60, 80) and 10 <= value < 20:
        return True
    if lang in _UNITS_FIRST and group < 10 and value < 100 and value % 10 == 0:
        return True
    return value < group and group % 10 ** len(str(value)) == 0
