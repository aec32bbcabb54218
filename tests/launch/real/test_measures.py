"""Measures of answers and their bootstrap intervals, on numbers worked out by hand."""

import math

import numpy as np
import pytest

from engine.base.languages import get_language
from launch.real.measures import Interval, best_by, best_of, measure, prefers_right

NEPALI = get_language("ne")
ROWS = [
    {"id": "a", "responses": ["४", "four", "४ "], "finished": [True, True, False], "scores": [1.0, 3.0, 2.0]},
    {"id": "b", "responses": ["रातो", "नीलो", "रातो"], "finished": [True, True, True], "scores": [0.5, 0.5, -1.0]},
]


def test_measures_are_means_over_the_samples_of_a_prompt():
    found = measure(ROWS, {"a": ROWS}, {"a": "४", "b": "रातो"}, NEPALI, len)
    expected = {
        "right": [2 / 3, 2 / 3], "right, more": [0.0, 0.0],
        "language": [2 / 3, 1.0], "ended": [2 / 3, 1.0], "length": [7 / 3, 4.0],
        "score a": [2.0, 0.0],
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)


def test_a_right_answer_that_goes_on_is_counted_apart():
    row = {"id": "a", "responses": ["४\nfour", "४", "five\n४", "४ "], "finished": [True] * 4}
    found = measure([row], {}, {"a": "४"}, NEPALI, len)
    assert (found["right"][0], found["right, more"][0]) == (0.5, 0.25)


def test_scores_of_other_answers_are_refused():
    with pytest.raises(AssertionError):
        measure(ROWS, {"a": ROWS[::-1]}, {"a": "४", "b": "रातो"}, NEPALI, len)


def test_an_interval_covers_the_mean_of_the_population_19_times_in_20():
    rng = np.random.default_rng(1)
    covered = sum(x.low <= 0.3 <= x.high for x in (Interval.of(rng.random(200) < 0.3) for _ in range(300)))
    assert 0.91 <= covered / 300 <= 0.98


def test_an_interval_is_close_to_the_normal_one_for_many_prompts():
    values = np.random.default_rng(0).normal(2.0, 3.0, 2_000)
    x = Interval.of(values)
    assert x.mean == pytest.approx(values.mean())
    assert x.half == pytest.approx(1.96 * values.std() / math.sqrt(2_000), rel=0.05)
    assert x == Interval.of(values), "the same table each time"


def test_one_beats_another_by_more_than_both_intervals():
    assert Interval(0.6, 0.55, 0.65).beats(Interval(0.49, 0.44, 0.54))
    assert not Interval(0.6, 0.55, 0.65).beats(Interval(0.51, 0.46, 0.56))


def test_best_of_takes_the_first_of_the_highest_scores():
    assert [(row["responses"], row["scores"]) for row in best_of(ROWS)] == [(["four"], [3.0]), (["रातो"], [0.5])]


def test_the_best_answer_by_one_reward_has_the_other_rewards_score_of_it():
    others = [{**row, "scores": [10 * x for x in range(3)]} for row in ROWS]
    found = best_by({"a": ROWS, "b": others}, "a")
    assert [(row["responses"], row["scores"]) for row in found["b"]] == [(["four"], [10]), (["रातो"], [0])]
    assert found["a"] == best_of(ROWS)


def test_pairs_of_a_right_and_a_wrong_sample_count_once_a_prompt():
    rows = [
        {"id": "a", "responses": ["4", "4\n!", "5", "4"], "scores": [1.0, 0.5, 1.0, 2.0]},  # 1, 0.5 and 1, 1
        {"id": "b", "responses": ["4", "4 "], "scores": [1.0, 0.0]},  # no wrong one
        {"id": "c", "responses": ["6", "7"], "scores": [0.0, 1.0]},
    ]
    found = prefers_right(rows, {"a": "4", "b": "4", "c": "6"})
    np.testing.assert_allclose(found, [3.5 / 4, 0.0])
