"""Tests of splits: no held-out prompt is trained on, whatever the size and seed; kinds have equal shares."""

from __future__ import annotations

from collections import Counter

import pytest

from datagen.kits import kit_codes, load_kit
from datagen.tasks.kinds import KINDS, all_tasks, is_finite
from datagen.tasks.splits import TRAINING_SPLITS, draw_split

HELDOUT_SPLITS = ("heldout", "ranking_heldout", "benchmarks")


def _prompts(tasks, finite=None):
    return {(task.instruction, task.input) for task in tasks if finite is None or is_finite(task.kind) == finite}


def test_splits_are_disjoint_over_seeds_and_sizes():
    kit = load_kit("en")
    drawn = {
        split: draw_split(kit, split, 1_200, KINDS, "a") + draw_split(kit, split, 300, KINDS, "b")
        for split in (*TRAINING_SPLITS, *HELDOUT_SPLITS)
    }
    for split, tasks in drawn.items():
        for other, others in drawn.items():
            if split == other:
                continue
            assert not _prompts(tasks, finite=False) & _prompts(others, finite=False)
            if (split in TRAINING_SPLITS) != (other in TRAINING_SPLITS):
                assert not _prompts(tasks) & _prompts(others)


def test_finite_kind_is_divided_into_training_and_held_out():
    kit = load_kit("en")
    for kind in filter(is_finite, KINDS):
        trained = _prompts(draw_split(kit, "sft", 2_000, [kind], "x"))
        held_out = _prompts(draw_split(kit, "heldout", 2_000, [kind], "x"))
        assert trained | held_out == _prompts(all_tasks(kit, kind))
        assert 0.15 < len(held_out) / len(trained | held_out) < 0.25


@pytest.mark.parametrize("split", TRAINING_SPLITS)
def test_training_has_equally_many_tasks_per_kind(split):
    counts = Counter(task.kind for task in draw_split(load_kit("en"), split, 24 * 30 + 5, KINDS, "x"))
    assert set(counts) == set(KINDS)
    assert set(counts.values()) == {30, 31}


def test_held_out_prompts_occur_once_and_small_kinds_leave_their_share():
    tasks = draw_split(load_kit("en"), "heldout", 600, KINDS, "x")
    assert len(tasks) == len(_prompts(tasks)) == 600
    counts = Counter(task.kind for task in tasks)
    assert counts["day_after"] == 6  # a fifth of 7 days x 4 phrasings
    assert {
        counts[kind] for kind in KINDS if kind not in ("day_after", "day_before", "month_after", "month_before")
    } <= {*range(22, 31)}


def test_held_out_kind_ends_and_training_kind_repeats():
    kit = load_kit("en")
    assert len(draw_split(kit, "heldout", 100, ["day_after"], "x")) == 6
    tasks = draw_split(kit, "sft", 100, ["day_after"], "x")
    assert len(tasks) == 100
    assert set(Counter((task.instruction, task.input) for task in tasks).values()) == {4, 5}
    assert len(draw_split(kit, "sft", 2_000, ["add"], "x")) == 2_000  # more than the split has prompts


@pytest.mark.parametrize("split", TRAINING_SPLITS)
def test_training_repeats_a_prompt_at_most_eight_times(split):
    kit = load_kit("en")
    alone = draw_split(kit, split, 2_000, ["day_after"], "x")
    assert set(Counter((task.instruction, task.input) for task in alone).values()) == {8}
    assert len(alone) == 8 * 22  # four fifths of 7 days x 4 phrasings
    counts = Counter(task.kind for task in draw_split(kit, split, 600, ["day_after", "add"], "x"))
    assert counts == {"day_after": 8 * 22, "add": 600 - 8 * 22}


def test_splits_reach_nearly_all_prompts_of_a_kind_that_is_not_finite():
    kit = load_kit("en")
    possible = 4 * sum(min(20, 30 - a) + 1 for a in range(21))  # phrasings x pairs whose sum is at most 30
    splits = (*TRAINING_SPLITS, *HELDOUT_SPLITS)
    drawn = [len(_prompts(draw_split(kit, split, 2_000, ["add"], "x"))) for split in splits]
    assert possible * 0.97 < sum(drawn) <= possible


def test_equal_streams_give_equal_tasks():
    kit = load_kit("en")
    first = draw_split(kit, "rl", 200, KINDS, "x")
    assert first == draw_split(kit, "rl", 200, KINDS, "x")
    assert first != draw_split(kit, "rl", 200, KINDS, "y")


@pytest.mark.parametrize("code", kit_codes())
def test_every_split_has_every_kind_in_every_language(code):
    kit = load_kit(code)
    for split in (*TRAINING_SPLITS, *HELDOUT_SPLITS):
        assert {task.kind for task in draw_split(kit, split, 48, KINDS, "x")} == set(KINDS)
