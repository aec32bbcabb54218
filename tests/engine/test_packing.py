"""Packing: plans computed by hand; an epoch uses every sequence once and ranks stay in step (property tests)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.seeds import batches
from engine.packing import Microbatch, first_fit_decreasing, pack_together, plan_microbatches

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def check_plan(lengths, budget, world_size):
    """Check what every plan guarantees. Return the items with weight 1, in any order."""
    plan = plan_microbatches(lengths, budget, world_size)
    assert len(plan) == world_size
    assert len({len(rank) for rank in plan}) == 1, "a rank would wait for the others forever"
    used = []
    for microbatch in (m for rank in plan for m in rank):
        assert microbatch.indices
        assert sum(lengths[i] for i in microbatch.indices) <= budget
        assert microbatch.weight in (0.0, 1.0)
        if microbatch.weight:
            used += microbatch.indices
    return used


def test_first_fit_decreasing_by_hand():
    #                          0  1  2  3  4  5
    assert first_fit_decreasing([2, 7, 3, 5, 1, 2], 10) == [[1, 2], [3, 0, 5, 4]]
    assert first_fit_decreasing([10, 10], 10) == [[0], [1]]
    with pytest.raises(AssertionError, match="item 1 has 11 tokens, the budget is 10"):
        first_fit_decreasing([1, 11], 10)


@given(lengths_lists, st.integers(0, 60))
def test_bins_hold_every_item_once_and_open_only_when_full(lengths, spare):
    budget = max(lengths) + spare
    bins = first_fit_decreasing(lengths, budget)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in b) for b in bins]
    assert all(t <= budget for t in tokens)
    # First fit opens a bin only if its first item fits into no earlier bin.
    for k, later in enumerate(bins):
        assert all(earlier + lengths[later[0]] > budget for earlier in tokens[:k])


def test_plan_for_two_ranks_by_hand():
    """Five bins, [9] [8 2] [7 3] [6 4] [5]: the fullest is split, then they go to the ranks in snake order."""
    plan = plan_microbatches([9, 8, 7, 6, 5, 4, 3, 2], 10, 2)
    assert [[m.indices for m in rank] for rank in plan] == [[(6, 2), (1,), (4,)], [(5, 3), (0,), (7,)]]
    assert all(m.weight == 1 for rank in plan for m in rank)


def test_rank_without_items_repeats_the_shortest_with_weight_0():
    plan = plan_microbatches([5, 3], 8, 3)
    assert plan == [[Microbatch((0,))], [Microbatch((1,))], [Microbatch((1,), 0.0)]]


@given(lengths_lists, st.integers(0, 60), st.integers(1, 5))
def test_every_item_has_weight_1_once_for_any_number_of_ranks(lengths, spare, world_size):
    used = check_plan(lengths, max(lengths) + spare, world_size)
    assert sorted(used) == list(range(len(lengths)))


@given(lengths_lists, st.integers(0, 60))
def test_stand_ins_only_where_no_bin_can_be_split(lengths, spare):
    for world_size in (2, 3, 4):
        plan = plan_microbatches(lengths, max(lengths) + spare, world_size)
        flat = [m for rank in plan for m in rank]
        if any(not m.weight for m in flat):
            assert all(len(m.indices) == 1 for m in flat)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_sequence_is_used_once_per_epoch(world_size):
    """147 sequences of uneven lengths, 3 epochs in steps of 20, counted over all ranks and steps."""
    lengths = [1 + (i * i * 7 + 3 * i) % 61 for i in range(147)]
    steps = batches(len(lengths), 20, 3, 11, "data")
    assert len(steps) == 3 * 8
    for epoch in range(3):
        used = Counter()
        for step in steps[8 * epoch : 8 * epoch + 8]:
            used.update(step[i] for i in check_plan([lengths[s] for s in step], 90, world_size))
        assert used == Counter(range(147))


def test_sequences_of_a_prompt_are_packed_together_while_they_fit():
    lengths, prompts = [5, 4, 5, 4, 5, 4], [(0, 3), (1, 2), (0, 3), (1, 2), (0, 3), (1, 2)]
    assert pack_together(lengths, range(6), 15, prompts) == [[0, 2, 4], [1, 3, 5]]
    assert pack_together(lengths, range(6), 10, prompts) == [[0, 2], [3, 1][::-1], [4, 5][::-1]]


@given(lengths_lists, st.integers(0, 60), st.integers(1, 5))
def test_packs_of_prompts_hold_each_sequence_once_within_the_budget(lengths, spare, num_prompts):
    budget, prompts = max(lengths) + spare, [(s % num_prompts, 1) for s in range(len(lengths))]
    packs = pack_together(lengths, range(len(lengths)), budget, prompts)
    assert sorted(s for pack in packs for s in pack) == list(range(len(lengths)))
    assert all(sum(lengths[s] for s in pack) <= budget for pack in packs)


@given(lengths_lists, st.integers(0, 60))
def test_without_prompts_sequences_are_packed_one_by_one(lengths, spare):
    budget = max(lengths) + spare
    packs = pack_together(lengths, range(len(lengths)), budget, None)
    assert [sorted(pack) for pack in packs] == [sorted(b) for b in first_fit_decreasing(lengths, budget)]
