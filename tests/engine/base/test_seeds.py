"""Seeds and learning rates: golden and hand-computed numbers; an epoch has every item once (property test)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.seeds import batches, derive_seed, even_parts, shuffled
from engine.objectives.schedule import learning_rate, ppo_rates, rate_line, warmup_warning
from engine.settings import OptimizerSettings


def test_seed_of_a_stream_is_fixed():
    """The first 8 bytes of `printf 3/prompts/0 | sha256sum`, halved. Another value would change every run."""
    assert derive_seed(3, "prompts", 0) == 0x9BC7909039A8C6CE >> 1


def test_different_names_give_different_seeds():
    names = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 10), (-1,)]
    seeds = [derive_seed(*name) for name in names]
    assert len(set(seeds)) == len(names)
    assert all(0 <= seed < 1 << 63 for seed in seeds)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(0, 9))
def test_epoch_has_every_item_once_in_the_fewest_steps_of_equal_size(count, size, epochs, seed):
    steps = batches(count, size, epochs, seed, "x")
    per_epoch = math.ceil(count / size)
    assert len(steps) == epochs * per_epoch
    for epoch in range(epochs):
        own = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for step in own for i in step) == list(range(count))
        sizes = [len(step) for step in own]
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("count", "size", "sizes"), [
    (129, 128, [65, 64]), (9, 5, [5, 4]), (6, 3, [3, 3]), (5, 2, [3, 2]), (3, 2, [3]), (4, 9, [4]), (1, 5, [1]),
])  # fmt: skip
def test_no_part_is_smaller_than_fewest(count, size, sizes):
    """The last part of an epoch takes a step at the full learning rate, so it must not hold a single item."""
    parts = even_parts(range(count), size, fewest=2)
    assert [len(part) for part in parts] == sizes
    assert [i for part in parts for i in part] == list(range(count))


def test_orders_differ_by_epoch_seed_and_name_and_repeat():
    first, second = batches(50, 50, 2, 0, "sft")
    others = [shuffled(50, 1, "sft", 0), shuffled(50, 0, "reward", 0), second, list(range(50))]
    assert all(sorted(order) == list(range(50)) and order != first for order in others)
    assert batches(50, 50, 2, 0, "sft") == [first, second]


def test_learning_rates_by_hand():
    def rates(schedule):
        return [learning_rate(step, 8, 0.4, schedule, 4) for step in range(8)]

    rise = [0.1, 0.2, 0.3, 0.4]
    assert rates("constant") == pytest.approx(rise + [0.4] * 4)
    assert rates("linear") == pytest.approx([*rise, 0.4, 0.3, 0.2, 0.1])
    cosines = [0.4 * 0.5 * (1 + c) for c in (1, math.sqrt(0.5), 0, -math.sqrt(0.5))]
    assert rates("cosine") == pytest.approx(rise + cosines)
    for schedule in ("linear", "cosine"):
        assert learning_rate(8, 8, 0.4, schedule, 4) == pytest.approx(0.0)


def test_wsd_by_hand():
    """Ten steps: two of warm-up, four at the peak, four of decay, by fifths."""
    rates = [learning_rate(step, 10, 0.5, "wsd", 2, 4) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert learning_rate(10, 10, 0.5, "wsd", 2, 4) == 0.0
    assert [learning_rate(step, 3, 0.4, "wsd", 0, 3) for step in range(3)] == pytest.approx([0.3, 0.2, 0.1])
    assert ppo_rates(7, 10, optimizer(lr=0.5, schedule="wsd", warmup_steps=2, decay_steps=4), 0.05, 0) == pytest.approx(
        (0.3, 0.03)
    )


def test_decay_is_a_fifth_of_the_run_or_as_given():
    settings = optimizer(schedule="wsd")
    assert [settings.decay(n) for n in (1, 4, 10, 1000)] == [1, 1, 2, 200]
    assert [optimizer(schedule="wsd", decay_steps=30).decay(n) for n in (10, 1000)] == [10, 30]
    assert optimizer().decay(1000) == 0
    assert rate_line(optimizer(schedule="wsd", warmup_steps=0), 50) == "2e-05, wsd, falling in the last 10 steps"
    with pytest.raises(UserError, match="--decay-steps is 3 and --schedule cosine: give --schedule wsd"):
        optimizer(decay_steps=3)
    with pytest.raises(UserError, match="--decay-steps is 0: give 1 or more"):
        optimizer(schedule="wsd", decay_steps=0)


def optimizer(**changes):
    values = {
        "lr": 2e-5,
        "schedule": "cosine",
        "max_warmup_steps": 300,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.9,
    }
    return OptimizerSettings(**values | changes)


@pytest.mark.parametrize(("num_steps", "warmup"), [(6, 0), (15, 1), (1219, 121), (3000, 300), (9000, 300)])
def test_default_warmup_is_at_most_a_tenth_of_the_run(num_steps, warmup):
    settings = optimizer()
    assert settings.warmup(num_steps) == warmup
    peak = max(learning_rate(s, num_steps, 2e-5, "cosine", warmup) for s in range(num_steps))
    assert peak == pytest.approx(2e-5)
    assert warmup_warning(settings, num_steps) is None
    assert ("a tenth of the run" in rate_line(settings, num_steps)) is (num_steps < 3000)
    assert ("--warmup-steps 300 takes them" in rate_line(settings, num_steps)) is (num_steps < 3000)


def test_given_warmup_is_used_and_warns_from_half_of_the_run():
    settings = optimizer(warmup_steps=50)
    assert [settings.warmup(n) for n in (6, 50, 5000)] == [50, 50, 50]
    assert warmup_warning(settings, 101) is None
    assert "50% of the run's 100 steps" in warmup_warning(settings, 100)
    line = warmup_warning(settings, 15)
    assert "warm-up of 50 steps is longer than the run of 15" in line and "30% of its peak" in line
    assert rate_line(settings, 15) == "2e-05, cosine after a warm-up of 50 steps"
    assert rate_line(optimizer(warmup_steps=0, schedule="constant"), 15) == "2e-05, constant"


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(1, 30), st.integers(0, 40))
def test_learning_rate_rises_once_and_stays_within_its_peak(schedule, num_steps, warmup_steps):
    rates = [learning_rate(step, num_steps, 2.0, schedule, warmup_steps) for step in range(num_steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    turn = min(warmup_steps, num_steps)
    assert rates[:turn] == sorted(rates[:turn])
    assert rates[turn:] == sorted(rates[turn:], reverse=True)
