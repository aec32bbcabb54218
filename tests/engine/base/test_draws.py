"""Draws of a mixture without lists: whole passes, shares, the same at any step, other orders for other seeds."""

import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.draws import Draws, shuffled_place
from engine.base.mixture import Mixture, Source

weights = st.floats(0.01, 100)


def mixture(counts, of):
    return Mixture(tuple(Source(f"{f}.txt", w) for f, w in enumerate(of)), tuple(counts))


@settings(deadline=None)
@given(count=st.integers(1, 400), key=st.integers(0, 2**63 - 1))
def test_a_shuffle_gives_each_place_once(count, key):
    assert sorted(shuffled_place(i, count, key) for i in range(count)) == list(range(count))


def test_a_shuffle_moves_places_far_and_depends_on_its_key():
    places = [shuffled_place(i, 1000, 5) for i in range(1000)]
    assert places != [shuffled_place(i, 1000, 6) for i in range(1000)]
    neighbours = sum(abs(a - b) == 1 for a, b in zip(places, places[1:]))
    assert neighbours < 10  # of a random order, 2 are
    early = sum(place < 500 for place in places[:500])
    assert 200 < early < 300


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    data=st.data(),
    size=st.integers(1, 12),
    epochs=st.integers(1, 4),
)
def test_a_file_is_read_whole_before_it_is_read_again(counts, data, size, epochs):
    mixed = mixture(counts, data.draw(st.lists(weights, min_size=len(counts), max_size=len(counts))))
    steps = Draws(mixed, size, epochs, None, 3, "x")
    drawn = [i for step in steps for i in step]
    assert len(drawn) == epochs * sum(counts) and max(map(len, steps)) <= size
    assert max(map(len, steps)) - min(map(len, steps)) <= 1
    assert steps.had(len(steps)) == [
        sum(first <= i < first + count for i in drawn)
        for first, count in zip((sum(counts[:f]) for f in range(len(counts))), counts)
    ]
    first = 0
    for count, share in zip(counts, mixed.shares):
        own = [i for i in drawn if first <= i < first + count]
        assert abs(len(own) - share * len(drawn)) <= 1
        for start in range(0, len(own), count):
            part = own[start : start + count]
            assert len(set(part)) == len(part), "no record twice in a pass"
        first += count


def test_passes_and_seeds_have_orders_of_their_own():
    steps = Draws(mixture([20], [1.0]), 20, 2, None, 0, "x")
    assert sorted(steps[0]) == sorted(steps[1]) == list(range(20)) and steps[0] != steps[1]
    assert Draws(mixture([20], [1.0]), 20, 2, None, 1, "x")[0] != steps[0]
    assert Draws(mixture([20], [1.0]), 20, 2, None, 0, "y")[0] != steps[0]


def test_a_step_does_not_depend_on_the_steps_asked_for_before():
    mixed = mixture([30, 7], [0.9, 0.1])
    steps = list(Draws(mixed, 5, 3, None, 0, "x"))
    short = Draws(mixed, 5, 3, 9, 0, "x")
    assert len(short) == 9 and short[8] == steps[8] and short[-1] == steps[8] and short[2:5] == steps[2:5]
    with pytest.raises(IndexError):
        short[9]
    assert Counter(i < 30 for i in sum(steps, [])) == {True: 100, False: 11}  # 90 % of 111


def test_memory_is_a_number_per_step_and_file():
    steps = Draws(mixture([10**9, 10**8], [0.9, 0.1]), 64, 1, 1000, 0, "x")
    assert sys.getsizeof(steps._had) < 30_000
    assert len(set(steps[999])) == 64 and max(steps[999]) >= 10**9
