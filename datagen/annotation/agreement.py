"""How far annotators agree: Krippendorff's alpha for ordinal data (Krippendorff 2011, "Computing ... Reliability")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def ordinal_alpha(units: Sequence[Sequence[int]]) -> float | None:
    """Return alpha of units, each with the values that its observers gave: 1 is full agreement, 0 is chance.

    A unit with fewer than two values is not compared. None if no unit is compared, or all values are equal.
    """
    pairs: Counter[tuple[int, int]] = Counter()  # the coincidence matrix: o_ck
    for unit in units:
        values = Counter(unit)
        for c, times in values.items():
            for k, others in values.items():
                if both := times * (others - (c == k)):
                    pairs[c, k] += both / (len(unit) - 1)
    total_of: Counter[int] = Counter()
    for (c, _), count in pairs.items():
        total_of[c] += count
    total, levels = sum(total_of.values()), sorted(total_of)
    observed = expected = 0.0
    for i, c in enumerate(levels):
        for j in range(i + 1, len(levels)):
            k = levels[j]
            # Two values are as far apart as there are values between them, half of their own included.
            apart = sum(total_of[level] for level in levels[i : j + 1]) - (total_of[c] + total_of[k]) / 2
            observed += pairs[c, k] * apart**2
            expected += total_of[c] * total_of[k] * apart**2
    return 1 - (total - 1) * observed / expected if expected else None
