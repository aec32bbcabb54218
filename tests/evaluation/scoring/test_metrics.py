"""Metrics against values computed by hand: normalization, ties, margins, MC2, standard errors."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.results.records import record_of
from evaluation.results.units import interval
from evaluation.scoring.metrics import Mean, argmax, chance, document_scores, log_sum_exp, margin, mc2, normalized
from tests.evaluation.scoring.documents import choice_of, document_of

# -6, -8 and -9 nats for texts of 2, 4 and 3 characters: -3, -2 and -3 nats per character. The texts have 2, 4 and 9
# bytes: -3, -2 and -1 nats per byte.
DOCUMENT = document_of(0, [choice_of((1,), (2,), text) for text in ("no", "okay", "नेप")], gold=1)
LLS = [-6.0, -8.0, -9.0]


def test_each_normalization_picks_another_choice():
    assert normalized(DOCUMENT, LLS, "acc") == [-6, -8, -9]
    assert normalized(DOCUMENT, LLS, "acc_norm") == [-3, -2, -3]
    assert normalized(DOCUMENT, LLS, "acc_bytes") == [-3, -2, -1]
    assert document_scores(DOCUMENT, LLS, ("acc_norm", "acc", "acc_bytes")) == {"acc_norm": 1, "acc": 0, "acc_bytes": 0}


def test_choice_without_text_comes_last_after_normalization():
    document = document_of(0, [choice_of((1,), (2,), ""), choice_of((1,), (2,), "ab")])
    assert normalized(document, [-1.0, -90.0], "acc_norm") == [-math.inf, -45]
    assert margin([-math.inf, -45]) is None


def test_argmax_takes_the_first_of_equals_and_margin_is_0_for_a_tie():
    assert argmax([-2.0, -1.0, -1.0]) == 1
    assert margin([-2.0, -1.0, -1.0]) == 0
    assert margin([-2.0, -1.0, -4.5]) == 1.0
    assert margin([-math.inf, -math.inf]) == 0


def test_mc1_is_1_if_the_best_choice_is_the_true_one():
    document = document_of(0, [choice_of((1,), (2,))] * 3, gold=0)
    assert document_scores(document, [-1.0, -2.0, -3.0], ("mc1",)) == {"mc1": 1}
    assert document_scores(document, [-2.0, -1.0, -3.0], ("mc1",)) == {"mc1": 0}


def test_mc2_is_the_share_of_probability_on_true_choices():
    lls = [math.log(0.1), math.log(0.3), math.log(0.2), math.log(0.2)]
    assert mc2(lls, (1.0, 1.0, 0.0, 0.0)) == pytest.approx(0.4 / 0.8)
    document = document_of(0, [choice_of((1,), (2,))] * 4, gold=(1.0, 1.0, 0.0, 0.0))
    assert document_scores(document, lls, ("mc2",)) == {"mc2": pytest.approx(0.5)}
    assert chance(document, "mc2") == 0.5


def test_mc2_does_not_underflow():
    assert math.exp(-900.0) == 0
    assert mc2([-900.0, -900.0 + math.log(3)], (1.0, 0.0)) == pytest.approx(0.25)


@given(st.lists(st.floats(-700, 0), min_size=2, max_size=6), st.floats(-5000, 0))
def test_mc2_is_shift_invariant(lls, shift):
    truth = [1.0, *[0.0] * (len(lls) - 1)]
    assert mc2([ll + shift for ll in lls], truth) == pytest.approx(mc2(lls, truth), rel=1e-6, abs=1e-9)
    assert mc2(lls, truth) == pytest.approx(math.exp(lls[0]) / math.fsum(map(math.exp, lls)), rel=1e-6, abs=1e-9)


def test_log_sum_exp_of_no_values():
    assert log_sum_exp([]) == -math.inf


def test_mean_and_standard_error():
    # 3 of 4 right: deviations 1/4, 1/4, 1/4, 3/4; sample variance (3/16 + 9/16) / 3 = 1/4, over 4 documents 1/16.
    assert Mean.of([1, 1, 1, 0]) == Mean(0.75, 0.25, 4)
    assert math.isnan(Mean.of([1]).stderr)


def test_mean_of_means_has_equal_weights():
    assert Mean.of_means([Mean(0.5, 0.3, 10), Mean(0.9, 0.4, 1000)]) == Mean(0.7, 0.25, 1010)


def test_mean_with_weights_by_hand():
    """Three prompts with 1, 2 and 1 rules, of which 1, 1 and 0 are followed: 2 of 4; residuals 0.5, 0 and -0.5."""
    found = Mean.of_ratio([1.0, 0.5, 0.0], [1, 2, 1])
    assert found.value == 0.5 and found.count == 3
    assert found.stderr == pytest.approx(math.sqrt((0.25 + 0.25) * 3 / 2) / 4)
    equal, plain = Mean.of_ratio([1.0, 0.0, 1.0], [2, 2, 2]), Mean.of([1.0, 0.0, 1.0])
    assert (equal.value, equal.stderr) == pytest.approx((plain.value, plain.stderr))
    assert math.isnan(Mean.of_ratio([1.0], [2]).stderr)


def test_pairs_by_hand():
    """The first sentence is the stereotyped one; a tie is not likelier, and is counted as a tie."""
    pair = document_of(0, [choice_of((1,), (2,), text) for text in ("He is.", "She is.")], gold=0)
    metrics = ("pct_stereotype", "likelihood_diff")
    found = [document_scores(pair, lls, metrics) for lls in ([-5.0, -7.5], [-7.5, -5.0], [-5.0, -5.0])]
    assert [scores["pct_stereotype"] for scores in found] == [1.0, 0.0, 0.0]
    assert [scores["likelihood_diff"] for scores in found] == [2.5, 2.5, 0.0]
    assert record_of(pair, [-5.0, -5.0], metrics)["ties"] == {"pct_stereotype": True}
    assert record_of(pair, [-5.0, -5.0], metrics)["chance"] == 0.5


def test_intervals_by_hand():
    """Wilson's of 0 of 6 is 0 to z2 / (6 + z2); of half of 100 it is 0.5 +- z / 2 / sqrt(99 + z2), as n is 99 there."""
    z2 = 1.959963984540054**2
    assert Mean.of([0.0] * 6).interval95 == pytest.approx((0, z2 / (6 + z2)))
    assert Mean.of([1.0] * 6).interval95 == pytest.approx((6 / (6 + z2), 1))
    half = math.sqrt(z2) / 2 / math.sqrt(99 + z2)
    assert Mean.of([0.0, 1.0] * 50).interval95 == pytest.approx((0.5 - half, 0.5 + half))
    assert Mean(-0.5, 0.1, 9).interval95 == pytest.approx((-0.5 - 0.1 * math.sqrt(z2), -0.5 + 0.1 * math.sqrt(z2)))
    assert Mean.of([0.5, 0.5]).interval95 == (0.5, 0.5)
    assert Mean.of([1.0]).interval95 == pytest.approx((1 / (1 + z2), 1))
    assert interval("length", Mean(12.0, 1.0, 4)) == pytest.approx((12 - math.sqrt(z2), 12 + math.sqrt(z2)))
    assert interval("length", Mean(0.5, math.nan, 1)) is None
