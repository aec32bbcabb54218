"""PackedBatch: one example computed by hand; select and concat keep every sequence whole and unmixed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import PackedBatch, action_columns, action_mask

packs = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=7), min_size=1, max_size=6)


def sequences_of(batch: PackedBatch) -> list[list[int]]:
    return [part.tolist() for part in batch.tokens_T.split(batch.lengths)]


def assert_same(one: PackedBatch, other: PackedBatch) -> None:
    assert one.lengths == other.lengths
    for name in ("tokens_T", "positions_T", "cu_seqlens"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name


def test_three_sequences_by_hand():
    batch = PackedBatch.from_sequences([[7, 8, 9], [4], [5, 6]])
    assert batch.tokens_T.tolist() == [7, 8, 9, 4, 5, 6]
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert (batch.lengths, batch.starts) == ((3, 1, 2), (0, 3, 4))
    assert (batch.num_tokens, batch.num_sequences, batch.max_len) == (6, 3, 3)
    assert batch.last_S.tolist() == [2, 3, 5]
    assert batch.target_T.tolist() == [8, 9, 9, 4, 6, 6]
    assert batch.sequence_T.tolist() == [0, 0, 0, 1, 2, 2]
    assert (batch.tokens_T.dtype, batch.positions_T.dtype, batch.cu_seqlens.dtype) == (
        torch.int64,
        torch.int64,
        torch.int32,
    )


def test_empty_sequence_is_an_assertion():
    with pytest.raises(AssertionError, match="without tokens"):
        PackedBatch.from_sequences([[1], []])


def test_actions_are_columns_from_last_prompt_token_to_second_to_last_token():
    batch = PackedBatch.from_sequences([[1, 2, 3, 4, 5], [1, 2, 3], [1, 2, 3], [9]])
    # Prompt of 2 tokens: columns 1 to 3. Prompt of 3: none. Prompt of 0: every column with a target.
    action_T = action_mask(batch, [2, 3, 0, 1])
    assert action_T.int().tolist() == [0, 1, 1, 1, 0, *[0, 0, 0], *[1, 1, 0], 0]


@given(packs, st.data())
def test_targets_of_actions_are_the_response(sequences, data):
    prompt_lens = [data.draw(st.integers(1, len(s))) for s in sequences]
    batch = PackedBatch.from_sequences(sequences)
    responses = [token for s, n in zip(sequences, prompt_lens) for token in s[n:]]
    assert batch.target_T[action_mask(batch, prompt_lens)].tolist() == responses


@given(packs, st.data())
def test_select_equals_packing_the_selected_sequences(sequences, data):
    ids = data.draw(st.lists(st.integers(0, len(sequences) - 1), min_size=1, max_size=8))
    batch = PackedBatch.from_sequences(sequences)
    assert_same(batch.select(ids), PackedBatch.from_sequences([sequences[i] for i in ids]))
    assert batch.tokens_T[batch.columns(ids)].tolist() == [token for i in ids for token in sequences[i]]


@given(st.lists(packs, min_size=1, max_size=4))
def test_concat_equals_packing_all_sequences_at_once(parts):
    joined = PackedBatch.concat([PackedBatch.from_sequences(part) for part in parts])
    assert_same(joined, PackedBatch.from_sequences([s for part in parts for s in part]))


@given(packs, st.randoms(use_true_random=False))
def test_shuffle_split_concat_and_reorder_is_the_identity(sequences, random):
    batch = PackedBatch.from_sequences(sequences)
    order = random.sample(range(len(sequences)), len(sequences))
    cut = random.randint(0, len(order))
    parts = [batch.select(ids) for ids in (order[:cut], order[cut:]) if ids]
    back = PackedBatch.concat(parts).select([order.index(i) for i in range(len(order))])
    assert_same(back, batch)
    assert sequences_of(back) == sequences


@given(packs)
def test_targets_stay_within_their_sequence(sequences):
    batch = PackedBatch.from_sequences(sequences)
    expected = [token for s in sequences for token in (*s[1:], s[-1])]
    assert batch.target_T.tolist() == expected
    moved = batch.to("cpu")
    assert_same(moved, batch)


def test_prompts_are_numbered_by_their_tokens_and_stay_with_their_sequences():
    batch = PackedBatch.from_sequences([[1, 2, 3], [4, 5], [1, 2, 6], [1, 2, 3]], prompt_lens=[2, 1, 2, 3])
    assert batch.prompts == ((0, 2), (1, 1), (0, 2), (2, 3))
    assert batch.select([2, 1]).prompts == batch.to("cpu").select([2, 1]).prompts == ((0, 2), (1, 1))


def test_joined_batches_keep_their_prompts_apart():
    one = PackedBatch.from_sequences([[1, 2], [1, 3]], prompt_lens=[1, 1])
    assert PackedBatch.concat([one, one]).prompts == ((0, 1), (0, 1), (1, 1), (1, 1))
    assert PackedBatch.concat([one, PackedBatch.from_sequences([[1]])]).prompts is None


def test_action_columns_of_known_prompts_are_those_of_the_mask():
    sequences, prompt_lens = [(1, 2, 3), (4,), (5, 6), (1, 2, 3, 7), (8, 9)], [2, 0, 2, 2, 0]
    batch = PackedBatch.from_sequences(sequences, prompt_lens=prompt_lens)
    mask_T = action_mask(batch, prompt_lens)
    expected = mask_T.nonzero()[:, 0].tolist()
    assert action_columns(batch, mask_T).tolist() == expected == [1, 7, 8, 10]
    assert action_columns(dataclasses.replace(batch, prompts=None), mask_T).tolist() == expected
