"""Tests of learned length ratios: usual ratios pass, others do not, and the order of texts does not matter."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.text.length_ratios import LengthRatios


def learned(ratio, count=400, spread=0.15, seed=0):
    rng = random.Random(seed)
    ratios = LengthRatios()
    for _ in range(count):
        length = rng.randint(20, 400)
        ratios.add("x" * length, "y" * max(1, round(length * ratio * rng.lognormvariate(0, spread))))
    return ratios


@pytest.mark.parametrize("ratio", [0.35, 1.0, 1.6])
def test_bounds_follow_the_learned_ratio(ratio):
    ratios = learned(ratio)
    text = "x" * 200
    assert ratios.fault(text, "y" * round(200 * ratio)) is None
    assert ratios.fault(text, "y" * round(200 * ratio * 2)) is None
    assert "where" in ratios.fault(text, "y" * round(200 * ratio / 4))
    assert "where" in ratios.fault(text, "y" * round(200 * ratio * 4))


def test_before_learning_only_extreme_ratios_are_faults():
    ratios = LengthRatios()
    assert ratios.fault("x" * 100, "y" * 20) is None
    assert ratios.fault("x" * 100, "y" * 2) is not None
    assert ratios.fault("x", "yyyyyyyy") is None


def test_few_outliers_hardly_move_the_bounds():
    ratios, with_outliers = learned(1.0), learned(1.0)
    for _ in range(40):
        with_outliers.add("x" * 100, "y" * 900)
    assert with_outliers.fault("x" * 100, "y" * 900) is not None
    assert abs(with_outliers.bounds()[1] - ratios.bounds()[1]) < 0.3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=120), st.randoms())
def test_order_of_texts_does_not_matter(lengths, rng):
    ratios, shuffled = LengthRatios(), LengthRatios()
    for a, b in lengths:
        ratios.add("x" * a, "y" * b)
    rng.shuffle(lengths)
    for a, b in lengths:
        shuffled.add("x" * a, "y" * b)
        shuffled.bounds()
    assert ratios.bounds() == shuffled.bounds()
    assert ratios.count == len(lengths)


def test_quartiles_by_hand():
    """60 ratios of 1, 20 of 2 and 20 of 0.5 (8 added to both lengths): both quartiles are 1, so the margin is 2.5."""
    ratios = LengthRatios()
    for source, target, count in ((92, 92, 60), (92, 192, 20), (92, 42, 20)):
        for _ in range(count):
            ratios.add("x" * source, "y" * target)
    assert ratios.fault("x" * 92, "y" * (250 - 9)) is None  # 249 / 100 = 2.49
    assert ratios.fault("x" * 92, "y" * (250 - 5)) is not None  # 2.53
    assert ratios.fault("x" * 92, "y" * (40 - 7)) is None  # 0.41
    assert ratios.fault("x" * 92, "y" * (40 - 10)) is not None  # 0.38
