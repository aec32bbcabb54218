"""Add up adjacent number tokens: two hundred five, five and twenty, 1 billion 20 million, seven and a half."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from datagen.text.number_words import PLUS, TIMES

# Languages that put units before tens: five and twenty.
_UNITS_FIRST = ("ar", "da", "de", "nl")
# Languages where the next number word may or may not belong to the number.
_AMBIGUOUS = ("it", "vi")
_THOUSAND, _HALF = 1000, Fraction(1, 2)
_MAX_NUMERATOR = 4  # "three quarters" is a product, "seven quarters" is not


class NumberToken(NamedTuple):
    """One number word, number in digits, or fraction in a run.

    sign     as in `number_words.Atom`, of a word
    index    of a number in digits, in the list of all such numbers; None for a word
    is_part  True for a fraction such as "half"
    """

    value: Fraction
    sign: str = ""
    index: int | None = None
    is_part: bool = False


@dataclass
class Sum:
    """A number that grows token by token.

    total    the value up to the last scale word ("two million"); None before the first scale
    group    the value since the last scale word; None right after one
    indices  those of its tokens in digits
    count    number of tokens
    """

    lang: str
    total: Fraction | None = None
    group: Fraction | None = None
    indices: list[int] = field(default_factory=list)
    count: int = 0
    ends_in_digits: bool = False

    @property
    def value(self) -> Fraction:
        """The value of the tokens so far."""
        return (self.total or Fraction(0)) + (self.group or Fraction(0))

    def take(self, token: NumberToken, is_scaled: bool) -> bool:
        """Add the token if it belongs to this number, and return whether it does. is_scaled: a scale word follows."""
        taken = self._scale(token) if token.sign == TIMES else self._add(token, is_scaled)
        if taken:
            self.count += 1
            self.indices += [] if token.index is None else [token.index]
            self.ends_in_digits = token.index is not None
        return taken

    def _scale(self, token: NumberToken) -> bool:
        value = token.value
        if value < _THOUSAND:
            if self.group is not None and self.group >= value:
                return False
            self.group = value * (1 if self.group is None else self.group)
        elif self.total is None or self.total < value:
            self.total, self.group = (self.value or 1) * value, None
        elif self.group is not None:
            self.total, self.group = self.total + self.group * value, None
        else:
            return False
        return True

    def _add(self, token: NumberToken, is_scaled: bool) -> bool:
        if token.index is not None:
            # "1 billion 20 million" is one number, "3 million 1950" is two.
            fits = self.group is None and (self.total is None or is_scaled)
        else:
            fits = self.group is None or (not self.ends_in_digits and self._continues(token))
        if fits:
            self.group = (self.group or Fraction(0)) + token.value
        return fits

    def _continues(self, token: NumberToken) -> bool:
        """Whether a word continues the group: twenty five, five and twenty, soixante dix, three ten (Arabic 13)."""
        group, value = self.group, token.value
        if value.denominator > 1 or value <= 0:
            return False
        if token.sign == PLUS:
            return group < 10
        if self.lang == "fr" and group in (60, 80) and 10 <= value < 20:
            return True
        if self.lang in _UNITS_FIRST and group < 10 and value < 100 and value % 10 == 0:
            return True
        return value < group and group % 10 ** len(str(value)) == 0


def sums(run: Sequence[NumberToken], lang: str) -> Iterator[Sum]:
    """Yield the numbers of a run in order, and every other reading if the language is ambiguous."""
    now = Sum(lang)
    for token, following in zip(run, [*run[1:], None]):
        if token.is_part:
            yield from _with_part(now, token.value)
            continue
        before = Sum(lang, now.total, now.group, [*now.indices], now.count)
        if not now.take(token, following is not None and following.sign == TIMES):
            yield now
            now = Sum(lang)
            now.take(token, True)
        elif lang in _AMBIGUOUS and token.sign != TIMES and before.group is not None:
            yield before
            yield Sum(lang, group=token.value, count=1)
    if now.count:
        yield now


def _with_part(now: Sum, part: Fraction) -> Iterator[Sum]:
    """Read "two and a half" and "three quarters" both as one value and without the fraction."""
    if now.group is None or (part != _HALF and now.group > _MAX_NUMERATOR):
        return
    together = now.group + part if part == _HALF else now.group * part
    if now.ends_in_digits:
        yield Sum(now.lang, now.total, together, count=1)
    else:
        yield Sum(now.lang, now.total, now.group, [*now.indices], now.count)
        now.group = together
