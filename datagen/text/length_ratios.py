"""Learn the usual length ratio of translation to source, and detect translations far outside it."""

from __future__ import annotations

import bisect
import math
from itertools import accumulate

_BIN = 0.02  # bin width in natural log: 2 % in length
_SOFTENING = 8  # characters added to both lengths, because the ratio of single words says little
_MIN_TEXTS = 50  # until then, _FIRST_BOUNDS apply
_FIRST_BOUNDS = math.log(1 / 10), math.log(10)
_QUARTILE_RANGES = 4.0  # margin beyond each quartile; 1 in 10**8 of a normal distribution lies outside
_MIN_MARGIN = math.log(2.5)


class LengthRatios:
    """A histogram of one language's length ratios. It does not depend on the order of the texts.

    The bounds lie four interquartile ranges beyond the quartiles, at least a factor of 2.5, but never allow a factor
    above 10. A few wrong translations hardly move them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._bins: dict[int, int] = {}
        self._bounds: tuple[float, float] | None = _FIRST_BOUNDS

    def add(self, source: str, target: str) -> None:
        """Add the ratio of one text and its translation."""
        index = round(_log_ratio(source, target) / _BIN)
        self._bins[index] = self._bins.get(index, 0) + 1
        self.count += 1
        self._bounds = None

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and largest natural log of an accepted ratio."""
        if self._bounds is None:
            self._bounds = self._learned() if self.count >= _MIN_TEXTS else _FIRST_BOUNDS
        return self._bounds

    def fault(self, source: str, target: str) -> str | None:
        """Return a message if the ratio is out of bounds, else None."""
        ratio, (least, most) = _log_ratio(source, target), self.bounds()
        if least <= ratio <= most:
            return None
        expected = f"{math.exp(least):.2f} to {math.exp(most):.2f}"
        return f"length: {len(target)} characters for {len(source)}, {math.exp(ratio):.2f} where {expected} is usual"

    def _learned(self) -> tuple[float, float]:
        bins = sorted(self._bins)
        sums = list(accumulate(self._bins[index] for index in bins))
        low, high = (bins[bisect.bisect_left(sums, quantile * self.count)] * _BIN for quantile in (0.25, 0.75))
        margin = max(_QUARTILE_RANGES * (high - low), _MIN_MARGIN)
        return max(low - margin, _FIRST_BOUNDS[0]), min(high + margin, _FIRST_BOUNDS[1])


def _log_ratio(source: str, target: str) -> float:
    return math.log((len(target.strip()) + _SOFTENING) / (len(source.strip()) + _SOFTENING))
