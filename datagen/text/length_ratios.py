"""How much longer translations are than their texts, learned as they come, and which are far outside of that."""

from __future__ import annotations

import bisect
import math
from itertools import accumulate

_BIN = 0.02  # of a natural logarithm: 2 % in length
_SOFTENING = 8  # characters added to both lengths: the ratio of a word to a word says little
_KNOWN_AFTER = 50  # texts; until then the ratio may be anything in _FIRST_BOUNDS
_FIRST_BOUNDS = math.log(1 / 10), math.log(10)
_QUARTILE_RANGES = 4.0  # so many beyond either quartile; of a normal distribution one in 10**8 lies outside
_LEAST_MARGIN = math.log(2.5)


class LengthRatios:
    """The ratios of one language, as a histogram: what it holds depends on the texts, not on their order.

    The bounds are the quartiles and four times their distance beyond them, and at least a factor of 2.5: a few wrong
    translations hardly move them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._bins: dict[int, int] = {}
        self._bounds: tuple[float, float] | None = _FIRST_BOUNDS

    def add(self, source: str, target: str) -> None:
        """Learns from one text and its translation."""
        place = round(_log_ratio(source, target) / _BIN)
        self._bins[place] = self._bins.get(place, 0) + 1
        self.count += 1
        self._bounds = None

    def bounds(self) -> tuple[float, float]:
        """The least and the largest natural logarithm of a ratio that is no fault."""
        if self._bounds is None:
            self._bounds = self._learned() if self.count >= _KNOWN_AFTER else _FIRST_BOUNDS
        return self._bounds

    def fault(self, source: str, target: str) -> str | None:
        """What is odd about the length, None if nothing is."""
        ratio, (least, most) = _log_ratio(source, target), self.bounds()
        if least <= ratio <= most:
            return None
        expected = f"{math.exp(least):.2f} to {math.exp(most):.2f}"
        return f"length: {len(target)} characters for {len(source)}, {math.exp(ratio):.2f} where {expected} is usual"

    def _learned(self) -> tuple[float, float]:
        places = sorted(self._bins)
        sums = list(accumulate(self._bins[place] for place in places))
        low, high = (places[bisect.bisect_left(sums, share * self.count)] * _BIN for share in (0.25, 0.75))
        margin = max(_QUARTILE_RANGES * (high - low), _LEAST_MARGIN)
        return max(low - margin, _FIRST_BOUNDS[0]), min(high + margin, _FIRST_BOUNDS[1])


def _log_ratio(source: str, target: str) -> float:
    return math.log((len(target.strip()) + _SOFTENING) / (len(source.strip()) + _SOFTENING))
