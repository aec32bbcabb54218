"""Metrics by hand: norms, ties, margins, MC2 where exp gives 0, standard errors."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scoring.metrics import Mean, best, chance, document_scores, log_sum_exp, margin, mc2, normed
from tests.evaluation.scoring.scorable import choice_of, document_of

# -6, -8 and -9 nats over texts of 2, 4 and 3 characters, of 2, 4 and 9 bytes: -3, -2, -3 and -3, -2, -1.
DOCUMENT = document_of(0, [choice_of((1,), (2,), text) for text in ("no", "okay", "नेप")], gold=1)
LLS = [-6.0, -8.0, -9.0]


def test_each_norm_picks_its_own_choice():
    assert normed(DOCUMENT, LLS, "acc") == [-6, -8, -9]
    assert normed(DOCUMENT, LLS, "acc_norm") == [-3, -2, -3]
    assert normed(DOCUMENT, LLS, "acc_bytes") == [-3, -2, -1]
    assert document_scores(DOCUMENT, LLS, ("acc_norm", "acc", "acc_bytes")) == {"acc_norm": 1, "acc": 0, "acc_bytes": 0}


def test_a_choice_without_text_comes_last_under_a_norm():
    document = document_of(0, [choice_of((1,), (2,), ""), choice_of((1,), (2,), "ab")])
    assert normed(document, [-1.0, -90.0], "acc_norm") == [-math.inf, -45]
    assert margin([-math.inf, -45]) is None


def test_the_first_of_equals_is_picked_and_the_tie_is_known():
    assert best([-2.0, -1.0, -1.0]) == 1
    assert margin([-2.0, -1.0, -1.0]) == 0
    assert margin([-2.0, -1.0, -4.5]) == 1.0
    assert margin([-math.inf, -math.inf]) == 0


def test_mc1_is_right_where_the_best_choice_is_the_true_one():
    document = document_of(0, [choice_of((1,), (2,))] * 3, gold=0)
    assert document_scores(document, [-1.0, -2.0, -3.0], ("mc1",)) == {"mc1": 1}
    assert document_scores(document, [-2.0, -1.0, -3.0], ("mc1",)) == {"mc1": 0}


def test_mc2_by_hand():
    lls = [math.log(0.1), math.log(0.3), math.log(0.2), math.log(0.2)]
    assert mc2(lls, (1.0, 1.0, 0.0, 0.0)) == pytest.approx(0.4 / 0.8)
    document = document_of(0, [choice_of((1,), (2,))] * 4, gold=(1.0, 1.0, 0.0, 0.0))
    assert document_scores(document, lls, ("mc2",)) == {"mc2": pytest.approx(0.5)}
    assert chance(document, "mc2") == 0.5


def test_mc2_far_below_where_exp_is_zero():
    assert math.exp(-900.0) == 0
    assert mc2([-900.0, -900.0 + math.log(3)], (1.0, 0.0)) == pytest.approx(0.25)


@given(st.lists(st.floats(-700, 0), min_size=2, max_size=6), st.floats(-5000, 0))
def test_mc2_depends_on_differences_alone(lls, shift):
    truth = [1.0, *[0.0] * (len(lls) - 1)]
    assert mc2([ll + shift for ll in lls], truth) == pytest.approx(mc2(lls, truth), rel=1e-6, abs=1e-9)
    assert mc2(lls, truth) == pytest.approx(math.exp(lls[0]) / math.fsum(map(math.exp, lls)), rel=1e-6, abs=1e-9)


def test_log_sum_exp_of_nothing():
    assert log_sum_exp([]) == -math.inf


def test_mean_and_standard_error_by_hand():
    # 3 of 4 right: deviations 1/4, 1/4, 1/4, 3/4; sample variance (3/16 + 9/16) / 3 = 1/4, over 4 documents 1/16.
    assert Mean.of([1, 1, 1, 0]) == Mean(0.75, 0.25, 4)
    assert math.isnan(Mean.of([1]).stderr)


def test_a_mean_of_means_weighs_each_the_same():
    assert Mean.over([Mean(0.5, 0.3, 10), Mean(0.9, 0.4, 1000)]) == Mean(0.7, 0.25, 1010)
