"""Krippendorff's alpha: the example of his paper, computed again by hand, and cases with a known result."""

from __future__ import annotations

import pytest

from datagen.annotation.agreement import ordinal_alpha

# Krippendorff (2011), example C: four observers, twelve units, some values missing.
UNITS = [
    [1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1],
    [2, 2, 2, 2], [5, 5, 5], [1, 1], [3],
]  # fmt: skip


def test_the_example_of_the_paper_computed_by_hand():
    # A unit of m values gives each of its ordered pairs 1 / (m - 1). Only the units 2, 6 and 8 disagree:
    #   unit 2 (2 2 3 2): o_23 += 3/3     unit 6 (1 2 3 4): each pair += 1/3     unit 8 (1 1 2 1): o_12 += 3/3
    o = {(1, 2): 1 + 1 / 3, (1, 3): 1 / 3, (1, 4): 1 / 3, (2, 3): 1 + 1 / 3, (2, 4): 1 / 3, (3, 4): 1 / 3}
    # Values in compared units; the single 3 of unit 12 is not compared: n = 9 + 13 + 10 + 5 + 3 = 40.
    n1, n2, n3, n4, n5 = 9, 13, 10, 5, 3
    apart = {
        (1, 2): (n1 + n2) / 2,
        (1, 3): n1 / 2 + n2 + n3 / 2,
        (1, 4): n1 / 2 + n2 + n3 + n4 / 2,
        (1, 5): n1 / 2 + n2 + n3 + n4 + n5 / 2,
        (2, 3): (n2 + n3) / 2,
        (2, 4): n2 / 2 + n3 + n4 / 2,
        (2, 5): n2 / 2 + n3 + n4 + n5 / 2,
        (3, 4): (n3 + n4) / 2,
        (3, 5): n3 / 2 + n4 + n5 / 2,
        (4, 5): (n4 + n5) / 2,
    }
    n = dict(enumerate((n1, n2, n3, n4, n5), 1))
    observed = sum(o[pair] * apart[pair] ** 2 for pair in o)
    expected = sum(n[c] * n[k] * distance**2 for (c, k), distance in apart.items())
    by_hand = 1 - (40 - 1) * observed / expected
    assert by_hand == pytest.approx(0.815, abs=5e-4)  # the number in the paper
    assert ordinal_alpha(UNITS) == pytest.approx(by_hand, abs=1e-12)


def test_full_agreement_is_1_and_reversed_ranks_are_below_0():
    assert ordinal_alpha([[1, 1], [2, 2], [3, 3]]) == 1
    assert ordinal_alpha([[1, 3], [2, 2], [3, 1]]) < -0.5


@pytest.mark.parametrize("units", [[], [[1], [2]], [[1, 1], [1, 1]]])
def test_nothing_to_compare_is_none(units):
    assert ordinal_alpha(units) is None
