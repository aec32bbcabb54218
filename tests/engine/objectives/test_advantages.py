"""Rewards, GAE and whitening against numbers computed by hand, with gaps between actions and over several ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import PackedBatch, action_mask
from engine.objectives.advantages import action_rewards, gae, moments, whiten

GARBAGE = 1e6  # fills columns that are no action; must not change any result


def close(actual, expected, rel=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=rel, atol=1e-6)


# Three sequences: prompt of 2 tokens and 3 actions; prompt of 2 and 1 action; prompt of 1 and no response.
BATCH = PackedBatch.from_sequences([[1] * 5, [1] * 3, [1]])
ACTION_T = action_mask(BATCH, [2, 2, 1])  # columns 1, 2, 3 and 6


def columns(*at_actions):
    x_T = torch.full((9,), GARBAGE)
    x_T[ACTION_T] = torch.tensor(at_actions)
    return x_T


def test_rewards_by_hand():
    kl_T = columns(0.5, -1.0, 2.0, 3.0)
    reward_T = action_rewards(kl_T, ACTION_T, BATCH.sequence_T, torch.tensor([10.0, -4.0, 99.0]), 0.1)
    close(reward_T, [0.0, -0.05, 0.1, -0.2 + 10.0, 0.0, 0.0, -0.3 - 4.0, 0.0, 0.0])


def test_nan_outside_actions_changes_nothing():
    kl_T = torch.where(ACTION_T, 1.0, torch.nan)
    reward_T = action_rewards(kl_T, ACTION_T, BATCH.sequence_T, torch.zeros(3), 0.5)
    close(reward_T, [0.0, -0.5, -0.5, -0.5, 0.0, 0.0, -0.5, 0.0, 0.0])


def test_gae_by_hand():
    """gamma 0.9, lambda 0.5, so that gamma lambda is 0.45.

    First sequence, from its end: the deltas are 2 + 0.5 = 2.5, 0 + 0.9 * -0.5 - 1 = -1.45, 1 + 0.9 * 1 - 0.5 = 1.4; the
    advantages are 2.5, -1.45 + 0.45 * 2.5 = -0.325, 1.4 + 0.45 * -0.325 = 1.25375. Second sequence: one action, 3 - 1.
    """
    reward_T, value_T = columns(1.0, 0.0, 2.0, 3.0), columns(0.5, 1.0, -0.5, 1.0)
    advantage_T, return_T = gae(reward_T, value_T, ACTION_T, BATCH.sequence_T, 0.9, 0.5, BATCH.max_len)
    close(advantage_T, [0, 1.25375, -0.325, 2.5, 0, 0, 2.0, 0, 0])
    close(return_T, [0, 1.75375, 0.675, 2.0, 0, 0, 3.0, 0, 0])


def test_gaps_between_actions_take_no_time():
    """The actions of the test above, with other columns between them, give the same numbers."""
    action_T = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0], dtype=torch.bool)
    sequence_T = torch.tensor([0] * 7 + [1] * 4)
    reward_T, value_T = torch.full((11,), GARBAGE), torch.full((11,), GARBAGE)
    reward_T[action_T] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    value_T[action_T] = torch.tensor([0.5, 1.0, -0.5, 1.0])
    advantage_T, return_T = gae(reward_T, value_T, action_T, sequence_T, 0.9, 0.5, 7)
    close(advantage_T[action_T], [1.25375, -0.325, 2.5, 2.0])
    close(return_T[action_T], [1.75375, 0.675, 2.0, 3.0])
    assert not advantage_T[~action_T].any()
    assert not return_T[~action_T].any()
    scored_T = action_rewards(value_T, action_T, sequence_T, torch.tensor([10.0, 20.0]), 0.0)
    close(scored_T, [0, 0, 0, 0, 0, 10.0, 0, 0, 0, 20.0, 0])


def test_lambda_1_sums_all_rewards_and_lambda_0_looks_one_step_ahead():
    reward_T, value_T = columns(1.0, 0.5, 2.0, 3.0), columns(0.5, 1.0, -0.5, 1.0)
    _, return_T = gae(reward_T, value_T, ACTION_T, BATCH.sequence_T, 1.0, 1.0, 5)
    close(return_T[ACTION_T], [3.5, 2.5, 2.0, 3.0])
    advantage_T, _ = gae(reward_T, value_T, ACTION_T, BATCH.sequence_T, 1.0, 0.0, 5)
    close(advantage_T[ACTION_T], [1.0 + 1.0 - 0.5, 0.5 - 0.5 - 1.0, 2.0 + 0.5, 2.0])


def test_batch_without_actions():
    batch, nothing_T = PackedBatch.from_sequences([[1], [2]]), torch.zeros(2, dtype=torch.bool)
    reward_T = action_rewards(torch.ones(2), nothing_T, batch.sequence_T, torch.ones(2), 0.1)
    advantage_T, return_T = gae(reward_T, torch.ones(2), nothing_T, batch.sequence_T, 1.0, 0.95, 1)
    assert not torch.cat([reward_T, advantage_T, return_T]).any()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_gae_equals_its_definition_for_any_actions(selected, gamma, lam, seed):
    """The reference loops over each sequence in Python floats."""
    action_T = torch.tensor([a for s in selected for a in s])
    sequence_T = torch.tensor([i for i, s in enumerate(selected) for _ in s])
    reward_T, value_T = torch.randn(2, len(action_T), generator=torch.Generator().manual_seed(seed))
    advantage_T, return_T = gae(reward_T, value_T, action_T, sequence_T, gamma, lam, max(map(len, selected)))
    expected = [0.0] * len(action_T)
    for i in range(len(selected)):
        ahead, next_value = 0.0, 0.0
        for t in reversed([t for t in range(len(action_T)) if action_T[t] and sequence_T[t] == i]):
            ahead = reward_T[t].item() + gamma * next_value - value_T[t].item() + gamma * lam * ahead
            expected[t], next_value = ahead, value_T[t].item()
    close(advantage_T, expected, 1e-4)
    close(return_T[action_T], (torch.tensor(expected) + value_T)[action_T].tolist(), 1e-4)


def test_whitening_by_hand():
    x_T, select_T = columns(1.0, 2.0, 3.0, 6.0), ACTION_T
    moments_3 = moments(x_T, select_T)
    assert moments_3.tolist() == [4.0, 12.0, 50.0]
    # mean 3, variance 12.5 - 9 = 3.5
    white = [(x - 3) / 3.5**0.5 for x in (1.0, 2.0, 3.0, 6.0)]
    close(whiten(x_T, select_T, moments_3), [0, *white[:3], 0, 0, white[3], 0, 0])


def test_moments_of_two_ranks_add_up():
    """Each rank whitens its own half with the sum of both moments."""
    x_T = 100 + 3 * torch.randn(1001, generator=torch.Generator().manual_seed(0))
    select_T = torch.arange(1001) % 3 != 0
    halves = [(x_T[:20], select_T[:20]), (x_T[20:], select_T[20:])]
    summed = sum(moments(*half) for half in halves)
    torch.testing.assert_close(summed, moments(x_T, select_T), rtol=1e-14, atol=0)
    parts = torch.cat([whiten(*half, summed) for half in halves])
    white_T = whiten(x_T, select_T, moments(x_T, select_T))
    torch.testing.assert_close(parts, white_T, rtol=0, atol=1e-6)
    assert white_T[select_T].mean().item() == pytest.approx(0, abs=1e-5)
    assert white_T[select_T].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert not white_T[~select_T].any()


def test_whitened_constant_is_zero():
    x_T = torch.full((5,), 0.1)
    white_T = whiten(x_T, x_T > 0, moments(x_T, x_T > 0))
    assert white_T.abs().max() < 1e-3
