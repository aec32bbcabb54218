"""Whether a translation keeps the numbers of its English text, in whatever way its language writes them."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from datagen.text.number_words import lexicon
from datagen.text.numbers import Digits, read_numbers

# Numbers that other languages write in so many ways that one which is not found may be there all the same: ordinals,
# hours of the twelve-hour clock, 2 million.
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
# Half an hour.
_SPAN = re.compile(r"(\d{1,9})[ -](minute|month)")
_SPAN_PARTS = {(30, "minute"): _HALF, (15, "minute"): _QUARTER, (45, "minute"): 3 * _QUARTER, (6, "month"): _HALF}
_PERCENT = re.compile(r"(\d{1,9})\s?%")
# Arabic says "two" with the noun's own ending.
_ARABIC_DUAL = re.compile(r"\w(?:ان|ين)(?:\b|ي\b|هما\b)")
_ITALIAN_CENTURIES = {
    place: f"{digit}cento"
    for place, digit in enumerate(("due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove"), 13)
}
# Where number words are not known, a number up to here may have become one.
_MOST_AS_WORD = 20
# Every number below a hundred has a word of its own there, and we know those to 30 and the tens.
_HUNDRED_WORDS = ("bn", "hi", "kn", "ml", "mr", "ne", "ta", "te")


def difference_of_numbers(source: str, target: str, lang: str) -> str | None:
    """A number of the source that the translation has not, or one that it has and the source has not; None if neither.

    Separators may differ, digits may be of any script, and numbers may become words and words numbers. Where the
    language has many ways to write what the source has (see _REWRITTEN), it is only a fault if another number stands
    in its place.
    """
    return _Comparison(source, target, lang).fault()


class _Comparison:
    """The numbers of both texts; each one that is found in the other text is taken out of `lost` and `added`."""

    def __init__(self, source: str, target: str, lang: str) -> None:
        self.lang = lang
        self.before, self.after = read_numbers(source, "en"), read_numbers(target, lang)
        self.text = self.before.text
        self.lost, self.added = list(self.before.digits), list(self.after.digits)
        if lang == "ar":
            self.after.words[Fraction(2)] += len(_ARABIC_DUAL.findall(self.after.text))
        self.words = self.after.words.copy()  # those that stand for no number of the source yet
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
        self._take_equal_ones()
        self.lost = [number for number in self.lost if not self._is_said(number)]
        if self.lost and self.added and not _groups(self.lost) - _groups(self.added):
            self.lost = []
        rewritten = [found.span() for found in _REWRITTEN.finditer(self.text)]
        hard = [number for number in self.lost if not self._may_be_hidden(number, rewritten)]
        if hard:
            return f"lost {hard[0].written}"
        if not self.added or not _groups(self.added) - _groups(self.before.digits):
            return None
        added = [number for number in self.added if not number.values & self._explained()]
        if added and self.lost:
            return f"lost {self.lost[0].written}, added {added[0].written}"
        if added:
            return f"added {added[0].written}"
        return None

    def _take_equal_ones(self) -> None:
        for number in [*self.lost]:
            same = [other for other in self.added if other.values & number.values or other.written == number.written]
            if same:
                self.lost.remove(number)
                self.added.remove(min(same, key=lambda other: other.written != number.written))

    def _state(self) -> tuple[list[Digits], Counter[Fraction], Counter[Fraction]]:
        return [*self.added], self.words.copy(), self.after.parts.copy()

    def _restore(self, state: tuple[list[Digits], Counter[Fraction], Counter[Fraction]]) -> None:
        self.added, self.words, self.after.parts = state

    def _has(self, *values: int | Fraction) -> bool:
        """Whether one of the values is in the translation: in digits, which are taken then, or in words."""
        wanted = frozenset(map(Fraction, values))
        for number in self.added:
            if number.values & wanted:
                self.added.remove(number)
                return True
        for value in wanted:
            if self.words[value]:
                self.words[value] -= 1
                return True
        return any(self.after.says(value) for value in wanted if value not in self.words)

    def _has_part(self, *parts: Fraction) -> bool:
        """Whether a half or quarter is named once more than numbers of the source were found in it."""
        for part in parts:
            if self.after.parts[part]:
                self.after.parts[part] -= 1
                return True
        return False

    def _drop(self, start: int, end: int) -> None:
        self.lost = [number for number in self.lost if not (start <= number.start < end)]

    def _take_time(self, found: re.Match[str]) -> None:
        hour, minute = int(found[1] or found[4]), int(found[2] or 0)
        hours = [hour, hour + 12] if hour < 12 else [hour, hour - 12]
        together = [hour + Fraction(minute, 100) for hour in hours]  # 9.30
        before = self._state()
        is_said = (minute and self._has(*together)) or (self._has(*hours) and (minute == 0 or self._has(minute)))
        if not is_said and minute in (15, 30, 45):
            self._restore(before)
            is_said = self._has(*hours, hour % 12 + 1) and self._has_part(
                *((_HALF,) if minute == 30 else (_QUARTER, 3 * _QUARTER))
            )
        if is_said:
            self._drop(*found.span())
            if not minute:
                self.added = [number for number in self.added if number.written != "00"]
        else:
            self._restore(before)

    def _take_date(self, found: re.Match[str]) -> None:
        """The year and the day must be there; the month may be a name, of which languages have too many forms."""
        numbers = [int(number) for number in found.groups() if number]
        year = numbers.pop(0 if found[1] else 2)
        before = self._state()
        if self._has(year, year % 100) and sum(self._has(number) for number in numbers) >= 1:
            self._drop(*found.span())
        else:
            self._restore(before)

    def _take_fraction(self, found: re.Match[str]) -> None:
        """3/4, or 2 3/4: as one value, or as numbers above and below."""
        whole, above, below = int(found[1] or 0), int(found[2]), int(found[3])
        if not below:
            return
        value, before = Fraction(above, below), self._state()
        if self._has(whole + value):
            self._drop(*found.span())
            return
        is_said = self._has(value) or ((above == 1 or self._has(above)) and self._has(below))
        if is_said and (not whole or self._has(whole)):
            self._drop(*found.span())
        else:
            self._restore(before)

    def _is_said(self, number: Digits) -> bool:
        """Whether a number that is not there in digits is there in another way."""
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

    def _may_be_hidden(self, number: Digits, rewritten: list[tuple[int, int]]) -> bool:
        """Whether the number may be there in a word or form that is not known."""
        is_small = min(number.values, default=99) <= _MOST_AS_WORD
        is_rewritten = any(start <= number.start < end for start, end in rewritten)
        if self.lang in _HUNDRED_WORDS:
            numbers = {value / scale for value in number.values for scale in (1, 1000, 10**5, 10**7)}
            if any(30 < value < 100 and value % 10 for value in numbers):
                return True
        return not self.is_known and (is_small or is_rewritten)

    def _explained(self) -> frozenset[Fraction]:
        """Values that may be in the translation's digits though the source has them not, or not in digits."""
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
        if self.lang == "vi" and _WEEKDAY.search(text):  # Monday is the second day
            values |= set(map(Fraction, range(2, 8)))
        values |= {Fraction(place) for place, name in enumerate(_MONTHS, 1) if re.search(rf"\b{name[:3]}", text)}
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


def _groups(numbers: list[Digits]) -> Counter[str]:
    """The digits of the numbers, between separators, without leading zeros: equal for 03/04 and 3.4."""
    return Counter(group.lstrip("0") or "0" for number in numbers for group in re.findall(r"\d+", number.written))
