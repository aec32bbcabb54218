"""Numbers that stand together, as sums: two hundred five, five and twenty, 1 billion 20 million, seven and a half."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from datagen.text.number_words import PLUS, TIMES

# Five and twenty, where the units come first.
_UNITS_FIRST = ("ar", "da", "de", "nl")
# Where a number and the next word are easily taken for one: three hundred five, or three hundred years.
_LOOSE = ("it", "vi")
_THOUSAND, _HALF = 1000, Fraction(1, 2)
_MOST_PARTS = 4  # three quarters


class Piece(NamedTuple):
    """A number in a run: of words with their sign (see `number_words.Atom`), of digits with their place, or a part."""

    value: Fraction
    sign: str = ""
    place: int | None = None
    is_part: bool = False


@dataclass
class Sum:
    """A number that grows piece by piece.

    total   what is complete up to its scale: two million; None before the first scale
    group   what comes below the next scale; None after a scale
    places  those of its digits
    count   of its pieces
    """

    lang: str
    total: Fraction | None = None
    group: Fraction | None = None
    places: list[int] = field(default_factory=list)
    count: int = 0
    ends_in_digits: bool = False

    @property
    def value(self) -> Fraction:
        """The number so far."""
        return (self.total or Fraction(0)) + (self.group or Fraction(0))

    def takes(self, piece: Piece, is_scaled: bool) -> bool:
        """Adds a piece if it belongs to this number. is_scaled: a piece that multiplies it comes next."""
        taken = self._scale(piece) if piece.sign == TIMES else self._add(piece, is_scaled)
        if taken:
            self.count += 1
            self.places += [] if piece.place is None else [piece.place]
            self.ends_in_digits = piece.place is not None
        return taken

    def _scale(self, piece: Piece) -> bool:
        value = piece.value
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

    def _add(self, piece: Piece, is_scaled: bool) -> bool:
        if piece.place is not None:
            # One billion 20 million; but 3 million, 1950.
            fits = self.group is None and (self.total is None or is_scaled)
        else:
            fits = self.group is None or (not self.ends_in_digits and self._goes_on(piece))
        if fits:
            self.group = (self.group or Fraction(0)) + piece.value
        return fits

    def _goes_on(self, piece: Piece) -> bool:
        """Whether a word goes on: twenty five, five and twenty, soixante dix, three ten (thirteen in Arabic)."""
        group, value = self.group, piece.value
        if value.denominator > 1 or value <= 0:
            return False
        if piece.sign == PLUS:
            return group < 10
        if self.lang == "fr" and group in (60, 80) and 10 <= value < 20:
            return True
        if self.lang in _UNITS_FIRST and group < 10 and value < 100 and value % 10 == 0:
            return True
        return value < group and group % 10 ** len(str(value)) == 0


def sums(run: Sequence[Piece], lang: str) -> Iterator[Sum]:
    """What a run says: one number after another, and what it may say besides where the language leaves that open."""
    now = Sum(lang)
    for piece, following in zip(run, [*run[1:], None]):
        if piece.is_part:
            yield from _with_part(now, piece.value)
            continue
        before = Sum(lang, now.total, now.group, [*now.places], now.count)
        if not now.takes(piece, following is not None and following.sign == TIMES):
            yield now
            now = Sum(lang)
            now.takes(piece, True)
        elif lang in _LOOSE and piece.sign != TIMES and before.group is not None:
            yield before
            yield Sum(lang, group=piece.value, count=1)
    if now.count:
        yield now


def _with_part(now: Sum, part: Fraction) -> Iterator[Sum]:
    """Two and a half, three quarters: both as a whole and without the part."""
    if now.group is None or (part != _HALF and now.group > _MOST_PARTS):
        return
    together = now.group + part if part == _HALF else now.group * part
    if now.ends_in_digits:
        yield Sum(now.lang, now.total, together, count=1)
    else:
        yield Sum(now.lang, now.total, now.group, [*now.places], now.count)
        now.group = together
