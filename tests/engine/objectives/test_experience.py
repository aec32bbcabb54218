"""Experience: select and concat move every column together with its sequence (property tests)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import PackedBatch
from engine.objectives.experience import Experience

lengths_lists = st.lists(st.integers(1, 6), min_size=1, max_size=6)
COLUMNS_T = ("logprob_T", "ref_logprob_T", "value_T", "reward_T", "advantage_T", "return_T")


def experience(lengths: list[int], first: int = 0, trunk: bool = True) -> Experience:
    """Every value encodes its column, its sequence and its position."""
    ids = range(first, first + len(lengths))
    place_T = torch.tensor([100.0 * i + t for i, n in zip(ids, lengths) for t in range(n)])
    return Experience(
        batch=PackedBatch.from_sequences([[100 * i + t for t in range(n)] for i, n in zip(ids, lengths)]),
        rollout_S=torch.tensor(list(ids)),
        action_T=place_T % 3 == 0,
        trunk_TD=torch.stack([place_T, place_T + 0.5], 1) if trunk else None,
        score_S=torch.tensor([i + 0.25 for i in ids]),
        **{name: place_T + 10_000 * k for k, name in enumerate(COLUMNS_T, start=1)},
    )


def assert_same(one: Experience, other: Experience) -> None:
    assert one.batch.lengths == other.batch.lengths
    assert torch.equal(one.batch.tokens_T, other.batch.tokens_T)
    for field in dataclasses.fields(Experience):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), field.name
        elif field.name != "batch":
            assert a is b is None, field.name


@given(lengths_lists, st.data())
def test_select_moves_all_columns(lengths, data):
    whole = experience(lengths)
    ids = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=7))
    one_by_one = Experience.concat([experience([lengths[i]], first=i) for i in ids])
    assert_same(whole.select(ids), one_by_one)


@given(lengths_lists, lengths_lists)
def test_concat_equals_one_experience_of_all_sequences(left, right):
    joined = Experience.concat([experience(left), experience(right, first=len(left))])
    assert_same(joined, experience(left + right))


@pytest.mark.parametrize("trunk", [True, False])
@given(lengths=lengths_lists, random=st.randoms(use_true_random=False))
def test_shuffle_split_concat_and_reorder_is_the_identity(trunk, lengths, random):
    whole = experience(lengths, trunk=trunk)
    order = random.sample(range(len(lengths)), len(lengths))
    cut = random.randint(0, len(order))
    parts = [whole.select(ids) for ids in (order[:cut], order[cut:]) if ids]
    assert_same(Experience.concat(parts).select([order.index(i) for i in range(len(order))]), whole)


def test_two_sequences_by_hand():
    whole = experience([2, 3], first=5)
    second = whole.select([1])
    assert second.rollout_S.tolist() == [6]
    assert second.score_S.tolist() == [6.25]
    assert second.batch.tokens_T.tolist() == [600, 601, 602]
    assert second.value_T.tolist() == [30_600.0, 30_601.0, 30_602.0]
    assert second.trunk_TD.tolist() == [[600.0, 600.5], [601.0, 601.5], [602.0, 602.5]]
    assert second.action_T.tolist() == [True, False, False]
