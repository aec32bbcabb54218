"""Read the numbers of a text: digits of any script, words of its language, Roman and Chinese numerals."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

from datagen.text.number_sums import NumberToken, sums
from datagen.text.number_words import Atom, Lexicon, atoms_of, lexicon, plain_words

_BETWEEN_DIGITS = ".,'\u2019\u066b\u066c\u00a0\u202f\u2009"
# Matches 12,345.6, 12 345,6 and .5.
NUMBER = re.compile(rf"(?:(?<![\w.])\.)?\d+(?:(?:[{_BETWEEN_DIGITS}]|(?<!\d\d\d\d) (?=\d\d\d(?!\d)))\d+)*", re.ASCII)
# Python's \w excludes vowel signs, so include the Indic blocks whole, except their full stops.
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
_FRACTION_SIGNS = {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3"}
_MAX_CHARACTERS = 40  # longer runs of digits are not read as numbers
_SMALL = re.compile("[⁰¹²³⁴-⁹₀-₉]+")


@dataclass(frozen=True)
class DigitNumber:
    """A number in digits: ASCII text, span, and possible values, including a scale after it ("million")."""

    written: str
    start: int
    end: int
    values: frozenset[Fraction]


@dataclass
class Reading:
    """The numbers of a text.

    text     the normalized text: `plain_digits`, then `plain_words`
    digits   numbers in digits, in text order
    words    value -> count, of numbers in words and numerals
    parts    fraction -> count, of halves, quarters and other fractions in words or as 1/2
    """

    text: str
    digits: list[DigitNumber] = field(default_factory=list)
    words: Counter[Fraction] = field(default_factory=Counter)
    parts: Counter[Fraction] = field(default_factory=Counter)

    def has_words_for(self, value: Fraction) -> bool:
        """Whether words give this value, alone or combined with a fraction: two and a half, half a million."""
        if self.words[value] or self.parts[value]:
            return True
        known = {Fraction(1), *self.words}.union(*(number.values for number in self.digits))
        rests = ((value - part * scale, scale) for part in +self.parts for scale in _SCALES)
        return any(
            (rest == 0 and scale in self.words) or (rest > 0 and rest % scale == 0 and rest in known)
            for rest, scale in rests
        )


def plain_digits(text: str) -> str:
    """Return the text with digits of every script as 0 to 9, super- and subscripts (m², H₂O) as "^2", ½ as " 1/2"."""
    text = _SMALL.sub(lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    text = re.sub(f"[{''.join(_FRACTION_SIGNS)}]", lambda sign: _FRACTION_SIGNS[sign[0]], text)
    return re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), text)


def values_of(written: str, lang: str) -> frozenset[Fraction]:
    """Return the possible values of a number in digits: 1.234 is 1.234 or 1234. Empty for 1.2.3, which is no number.

    In English, a comma separates thousands and a full stop decimals.
    """
    if len(written) > _MAX_CHARACTERS:
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
    """Read all numbers of a text: words in language `lang`, digits and numerals in any."""
    reading = Reading(plain_words(plain_digits(text), lang), words=_roman_values(text))
    reading.parts.update(Fraction(found[0]) for found in _FRACTION.finditer(reading.text))
    reading.parts += Counter({part: reading.text.count(words) for words, part in _CHINESE_PARTS.items()})
    found = [DigitNumber(m[0], m.start(), m.end(), values_of(m[0], lang)) for m in NUMBER.finditer(reading.text)]
    found = _with_letters(reading.text, _with_chinese(found, reading))
    scaled: dict[int, set[Fraction]] = {}
    absorbed: set[int] = set()
    for run in _runs(found, lang, reading):
        for pick in (max, min):
            for number in sums([_with_value(token, found, pick) for token in run], lang):
                if number.indices and number.count > 1:
                    scaled.setdefault(number.indices[0], set()).add(number.value)
                    absorbed |= set(number.indices[1:])
                elif not number.indices:
                    reading.words[number.value] += pick is max
    reading.digits = [
        replace(number, values=frozenset(scaled.get(index, number.values)))
        for index, number in enumerate(found)
        if index not in absorbed
    ]
    return reading


def _roman_values(text: str) -> Counter[Fraction]:
    """Count the Roman numerals. Cyrillic letters that look like Latin ones are read as Latin: writers use both."""
    values: Counter[Fraction] = Counter()
    for found in _ROMAN.finditer(text.translate(_CYRILLIC_ROMAN)):
        numbers = [_ROMAN_DIGITS[letter] for letter in found[1]]
        values[Fraction(sum(-a if a < b else a for a, b in zip(numbers, [*numbers[1:], 0])))] += 1
    return values


def _with_chinese(numbers: list[DigitNumber], reading: Reading) -> list[DigitNumber]:
    """Return the numbers, multiplied by a Chinese unit if one follows (5万). Add Chinese numerals to `reading`."""
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
    """Return the value of Chinese numerals, or of `number` times the units after it. 一九八四 has no unit: 1984."""
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


def _with_letters(text: str, numbers: list[DigitNumber]) -> list[DigitNumber]:
    """Add the value of a letter scale: 5k may be 5,000; 5m may be five million or five metres."""
    result = []
    for number in numbers:
        letter = _LETTER_SCALE.match(text, number.end)
        scale = 1000**letter.lastindex if letter else 1
        result.append(replace(number, values=number.values | {value * scale for value in number.values}))
    return result


def _with_value(
    token: NumberToken, numbers: list[DigitNumber], pick: Callable[[frozenset[Fraction]], Fraction]
) -> NumberToken:
    """Return the token; one in digits gets the possible value that `pick` (max or min) selects."""
    if token.index is None or not numbers[token.index].values:
        return token
    return token._replace(value=pick(numbers[token.index].values))


def _runs(numbers: list[DigitNumber], lang: str, reading: Reading) -> Iterator[list[NumberToken]]:
    """Yield runs of numbers with only spaces, hyphens and "and" between them. Add all fractions to `reading`."""
    words, indices = lexicon(lang), {number.start: index for index, number in enumerate(numbers)}
    run: list[NumberToken] = []
    end = 0
    for start, stop, token in _tokens(reading.text, words):
        # Arabic writes a preposition together with its word; it starts a new number.
        is_apart = lang == "ar" and isinstance(token, str) and token[0] in "بلك" and not words.whole.get(token)
        if run and (is_apart or not _GAP.fullmatch(reading.text, end, start)):
            yield run
            run = []
        if run and token in words.links:
            end = stop
            continue
        if start in indices:
            number_tokens = [NumberToken(Fraction(0), index=indices[start])]
        else:
            atoms = [token] if isinstance(token, Atom) else atoms_of(token, lang)
            reading.parts.update(atom.part for atom in atoms if atom.part)
            # A fraction after a number belongs to it. One that starts a run is only counted in `reading.parts`.
            number_tokens = [
                NumberToken(atom.part, is_part=True) if atom.value is None else NumberToken(atom.value, atom.sign)
                for atom in atoms
                if atom.value is not None or run
            ]
        if not number_tokens:
            yield run
            run = []
        run += number_tokens
        end = stop
    yield run


def _tokens(text: str, words: Lexicon) -> Iterator[tuple[int, int, str | Atom]]:
    """Yield start, end, and the text of each word or number; for a phrase of several words, its atom instead."""
    tokens = list(_TOKEN.finditer(text))
    index = 0
    while index < len(tokens):
        meaning: str | Atom = tokens[index][0]
        length = 1
        for phrase, is_stem, atom in words.phrases.get(tokens[index][0], ()):
            texts = [token[0] for token in tokens[index : index + len(phrase)]]
            if is_stem and len(texts) == len(phrase):
                texts[-1] = texts[-1][: len(phrase[-1])]
            if tuple(texts) == phrase and len(phrase) > length:
                meaning, length = atom, len(phrase)
        yield tokens[index].start(), tokens[index + length - 1].end(), meaning
        index += length
