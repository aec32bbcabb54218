"""Check that a translation keeps the numbers of its English text, in any form that its language uses."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from datagen.text.number_words import lexicon
from datagen.text.numbers import DigitNumber, read_numbers

# Numbers that other languages write in too many ways to find them all: ordinals, hours of the twelve-hour clock,
# 2 million.
_REWRITTEN = re.compile(
    r"(?<![\d.,:])\d[\d.,:]{0,20}(?:(?:st|nd|rd|th)\b|\s?(?:[ap]\.?\s?m\b\.?|o clock)"
    r"|[\s-]{0,2}(?:hundreds?|thousands?|[mbtr]+illions?|[kmb]\b))"
)
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
           "december")  # fmt: skip
_WEEKDAY = re.compile(r"\b(?:mon|tues|wednes|thurs|fri|satur)days?\b")
_ONE = re.compile(r"\b(?:an?|each|per|every|another|single|whole|\w*(?:dai|hour|week|month|year)ly|annual\w*)\b")
_HALF, _QUARTER = Fraction(1, 2), Fraction(1, 4)
_TIME = re.compile(r"(?<![\d:])(\d{1,2}):(\d\d)(?![\d:])(?:\s*([ap])\.?\s?m\b)?|(?<![\d:.])(\d{1,2})\s*([ap])\.?\s?m\b")
_DATE = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b|\b(\d{1,2})/(\d{1,2})/(\d{2,4})\b")
_FRACTION = re.compile(r"(?<![\d/])(?:(\d{1,9})[ -])?(\d{1,2})/(\d{1,2})(?![\d/])")
_DECADE = re.compile(r"(?<!\d)(\d{0,2}\d0) ?s\b")
_CENTURY = re.compile(r"(\d{1,2})(?:st|nd|rd|th)?[ -](?:and \d+\w\w )?centur")
_ALWAYS = re.compile(r"\b24/7\b")
# 30 minutes may become half an hour.
_SPAN = re.compile(r"(\d{1,9})[ -](minute|month)")
_SPAN_PARTS = {(30, "minute"): _HALF, (15, "minute"): _QUARTER, (45, "minute"): 3 * _QUARTER, (6, "month"): _HALF}
_PERCENT = re.compile(r"(\d{1,9})\s?%")
# Arabic has a noun ending for "two".
_ARABIC_DUAL = re.compile(r"\w(?:ان|ين)(?:\b|ي\b|هما\b)")
_ITALIAN_CENTURIES = {
    century: f"{digit}cento"
    for century, digit in enumerate(("due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove"), 13)
}
# In a language without known number words, a number up to this may have become a word.
_MAX_AS_WORD = 20
# Languages with a separate word for each number below 100. We know the words to 30 and the tens.
_HUNDRED_WORDS = ("bn", "hi", "kn", "ml", "mr", "ne", "ta", "te")


def number_fault(source: str, target: str, lang: str) -> str | None:
    """Name a number that the translation lost or added ("lost 5", "added 9"); None if there is none.

    Separators and the script of digits may differ, and numbers may become words and words numbers. If the language may
    write a number in a form that we do not know, losing it is a fault only if the translation has another one instead.
    """
    return _Comparison(source, target, lang).fault()


class _Comparison:
    """The numbers of both texts. Each number found in the other text is removed from `lost` and `added`."""

    def __init__(self, source: str, target: str, lang: str) -> None:
        self.lang = lang
        self.before, self.after = read_numbers(source, "en"), read_numbers(target, lang)
        self.text = self.before.text
        self.lost, self.added = list(self.before.digits), list(self.after.digits)
        if lang == "ar":
            self.after.words[Fraction(2)] += len(_ARABIC_DUAL.findall(self.after.text))
        self.words = self.after.words.copy()  # without those matched to a number of the source
        self.is_known = lang == "zh" or bool(lexicon(lang))

    def fault(self) -> str | None:
        for found in _TIME.finditer(self.text):
            self._take_time(found)
        for found in _DATE.finditer(self.text):
            self._take_date(found)
        for found in _FRACTION.finditer(self.text):
            self._take_fraction(found)
        if _ALWAYS.search(self.text):
            self._drop(*_ALWAYS.search(self.text).span())
            self.added = [number for number in self.added if number.written not in ("24", "7")]
        self._take_equal()
        self.lost = [number for number in self.lost if not self._is_rewritten(number)]
        if self.lost and self.added and not _groups(self.lost) - _groups(self.added):
            self.lost = []
        rewritten = [found.span() for found in _REWRITTEN.finditer(self.text)]
        certain = [number for number in self.lost if not self._may_be_hidden(number, rewritten)]
        if certain:
            return f"lost {certain[0].written}"
        if not self.added or not _groups(self.added) - _groups(self.before.digits):
            return None
        added = [number for number in self.added if not number.values & self._explained()]
        if added and self.lost:
            return f"lost {self.lost[0].written}, added {added[0].written}"
        if added:
            return f"added {added[0].written}"
        return None

    def _take_equal(self) -> None:
        for number in [*self.lost]:
            same = [other for other in self.added if other.values & number.values or other.written == number.written]
            if same:
                self.lost.remove(number)
                self.added.remove(min(same, key=lambda other: other.written != number.written))

    def _state(self) -> tuple[list[DigitNumber], Counter[Fraction], Counter[Fraction]]:
        return [*self.added], self.words.copy(), self.after.parts.copy()

    def _restore(self, state: tuple[list[DigitNumber], Counter[Fraction], Counter[Fraction]]) -> None:
        self.added, self.words, self.after.parts = state

    def _has(self, *values: int | Fraction) -> bool:
        """Find one of the values in the translation, in digits or in words, and take the number out."""
        wanted = frozenset(map(Fraction, values))
        for number in self.added:
            if number.values & wanted:
                self.added.remove(number)
                return True
        for value in wanted:
            if self.words[value]:
                self.words[value] -= 1
                return True
        return any(self.after.has_words_for(value) for value in wanted if value not in self.words)

    def _has_part(self, *parts: Fraction) -> bool:
        """Find one of the fractions (half, quarter) in the translation and take it out."""
        for part in parts:
            if self.after.parts[part]:
                self.after.parts[part] -= 1
                return True
        return False

    def _drop(self, start: int, end: int) -> None:
        """Remove the source numbers that start in [start, end) from `lost`."""
        self.lost = [number for number in self.lost if not (start <= number.start < end)]

    def _take_time(self, found: re.Match[str]) -> None:
        """Match 9:30 with 9 and 30, 21 and 30, 9.30, half ten, or 9 and a half."""
        hour, minute = int(found[1] or found[4]), int(found[2] or 0)
        hours = [hour, hour + 12] if hour < 12 else [hour, hour - 12]
        together = [hour + Fraction(minute, 100) for hour in hours]  # 9.30
        before = self._state()
        is_found = (minute and self._has(*together)) or (self._has(*hours) and (minute == 0 or self._has(minute)))
        if not is_found and minute in (15, 30, 45):
            self._restore(before)
            is_found = self._has(*hours, hour % 12 + 1) and self._has_part(
                *((_HALF,) if minute == 30 else (_QUARTER, 3 * _QUARTER))
            )
        if is_found:
            self._drop(*found.span())
            if not minute:
                self.added = [number for number in self.added if number.written != "00"]
        else:
            self._restore(before)

    def _take_date(self, found: re.Match[str]) -> None:
        """Require the year and one more number. The month may become a name, which has too many forms to check."""
        numbers = [int(number) for number in found.groups() if number]
        year = numbers.pop(0 if found[1] else 2)
        before = self._state()
        if self._has(year, year % 100) and sum(self._has(number) for number in numbers) >= 1:
            self._drop(*found.span())
        else:
            self._restore(before)

    def _take_fraction(self, found: re.Match[str]) -> None:
        """Match 3/4 or 2 3/4 with one value, or with numerator and denominator."""
        whole, numerator, denominator = int(found[1] or 0), int(found[2]), int(found[3])
        if not denominator:
            return
        value, before = Fraction(numerator, denominator), self._state()
        if self._has(whole + value):
            self._drop(*found.span())
            return
        is_found = self._has(value) or ((numerator == 1 or self._has(numerator)) and self._has(denominator))
        if is_found and (not whole or self._has(whole)):
            self._drop(*found.span())
        else:
            self._restore(before)

    def _is_rewritten(self, number: DigitNumber) -> bool:
        """Whether the translation has the number in another form: a decade, a century, a fraction, or words."""
        values = list(number.values)
        for found in _DECADE.finditer(self.text, max(0, number.start - 1), number.end + 2):
            decade = int(found[1])
            values += [decade, decade % 100] if decade >= 100 else [decade, 1900 + decade, 2000 + decade]
            if decade >= 100 and decade % 100 == 0:
                values.append(decade // 100 + 1)  # the first decade of a century
        if found := _CENTURY.match(self.text, number.start):
            century = int(found[1])
            values.append((century - 1) * 100)
            if self.lang == "it" and _ITALIAN_CENTURIES.get(century, "-") in self.after.text:
                return True
        if found := _SPAN.match(self.text, number.start):
            part = _SPAN_PARTS.get((int(found[1]), found[2]))
            if part and self._has_part(part):
                return True
        if found := _PERCENT.match(self.text, number.start):
            percent = Fraction(found[1])
            values += [value for value in (_HALF, _QUARTER, 1 - _QUARTER) if 100 * value == percent]
            if self.lang == "zh" and "折" in self.after.text:
                values += [(100 - percent) / 10, 100 - percent]
        return self._has(*values)

    def _may_be_hidden(self, number: DigitNumber, rewritten: list[tuple[int, int]]) -> bool:
        """Whether the translation may have the number in a word or form that we do not know."""
        is_small = min(number.values, default=99) <= _MAX_AS_WORD
        is_rewritten = any(start <= number.start < end for start, end in rewritten)
        if self.lang in _HUNDRED_WORDS:
            numbers = {value / scale for value in number.values for scale in (1, 1000, 10**5, 10**7)}
            if any(30 < value < 100 and value % 10 for value in numbers):
                return True
        return not self.is_known and (is_small or is_rewritten)

    def _explained(self) -> frozenset[Fraction]:
        """Return values that the translation may write in digits although the source does not."""
        text, before = self.text, self.before
        values = {*before.words, *before.parts}.union(*(number.values for number in before.digits))
        values |= {value + part for value in before.words for part in before.parts}
        values |= {100 * part for part in before.parts}
        if _ONE.search(text):
            values.add(Fraction(1))
        if "midnight" in text:
            values |= {Fraction(0), Fraction(24)}
        if "centur" in text:
            values.add(Fraction(100))
        if self.lang == "vi" and _WEEKDAY.search(text):  # Vietnamese Monday is "the second"
            values |= set(map(Fraction, range(2, 8)))
        values |= {Fraction(month) for month, name in enumerate(_MONTHS, 1) if re.search(rf"\b{name[:3]}", text)}
        for found in _DECADE.finditer(text):
            values |= {Fraction(int(found[1]) // 100 + 1), Fraction(int(found[1]) % 100), Fraction(20), Fraction(21)}
        for value in set(before.words) & {Fraction(tens) for tens in range(20, 100, 10)}:
            values |= {value + 1900, Fraction(20)}
        for found in _CENTURY.finditer(text):
            values.add(Fraction((int(found[1]) - 1) * 100))
        for found in _TIME.finditer(text):
            hour = int(found[1] or found[4])
            values |= {Fraction(hour + 12), Fraction(hour % 12 + 1), Fraction(0)}
        return frozenset(values)


def _groups(numbers: list[DigitNumber]) -> Counter[str]:
    """Count the digit groups between separators, without leading zeros: 03/04 and 3.4 give the same counts."""
    return Counter(group.lstrip("0") or "0" for number in numbers for group in re.findall(r"\d+", number.written))
