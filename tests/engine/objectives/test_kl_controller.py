"""KLController against numbers computed by hand."""

from __future__ import annotations

import pytest

from engine.objectives.kl_controller import KLController


@pytest.mark.parametrize(
    ("observed", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 128 / 10_000),  # 10% above the target
        (5.4, 1 - 0.1 * 128 / 10_000),
        (7.2, 1 + 0.2 * 128 / 10_000),  # on the clip
        (600.0, 1 + 0.2 * 128 / 10_000),
        (0.0, 1 - 0.2 * 128 / 10_000),
        (-3.0, 1 - 0.2 * 128 / 10_000),  # k1 of a small sample may be negative
    ],
)
def test_one_update(observed, factor):
    controller = KLController(0.1, 6.0, 10_000.0)
    controller.update(observed, 128)
    assert controller.coef == pytest.approx(0.1 * factor, rel=1e-12)


def test_updates_multiply():
    controller = KLController(0.5, 2.0, 10.0)
    controller.update(2.2, 5)  # 1 + 0.1 * 0.5
    controller.update(1.0, 10)  # 1 - 0.2 * 1
    assert controller.coef == pytest.approx(0.5 * 1.05 * 0.8)


def test_fixed_without_target():
    controller = KLController(0.1, None, 10_000.0)
    controller.update(600.0, 128)
    assert controller.coef == 0.1
