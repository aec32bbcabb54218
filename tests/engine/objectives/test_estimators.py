"""Advantages without a critic against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from engine.batch import PackedBatch, action_mask
from engine.objectives.advantages import ESTIMATORS, Rollouts, grpo, rloo
from engine.settings import FEWEST_SAMPLES, PPOSettings

# Two prompts with two responses each, of 2, 1, 1 and 3 actions; all prompts have 1 token.
LENGTHS = (3, 2, 2, 4)
BATCH = PackedBatch.from_sequences([[1] * n for n in LENGTHS])
ACTION_T = action_mask(BATCH, [1] * 4)


def rollouts(rewards, samples):
    reward_T = torch.zeros(sum(LENGTHS))
    reward_T[ACTION_T] = torch.tensor(rewards)
    return Rollouts(BATCH, ACTION_T, reward_T, None, samples, lambda x: x)


def settings(name, samples, **changes):
    return PPOSettings(advantage=name, samples_per_prompt=samples, **changes)


def check(advantage_T, expected):
    assert advantage_T.dtype == torch.float32 and not advantage_T[~ACTION_T].any()
    torch.testing.assert_close(advantage_T[ACTION_T], torch.tensor(expected), rtol=1e-6, atol=1e-6)


REWARDS = [-0.5, 2.5, 1.0, 0.0, -1.0, 0.0, 5.0]  # returns 2, 1, 0 and 4


def test_names_are_those_of_the_settings():
    assert ESTIMATORS.keys() == FEWEST_SAMPLES.keys()


def test_returns_by_hand():
    x = rollouts(REWARDS, 2)
    assert x.return_S.tolist() == [2.0, 1.0, 0.0, 4.0]
    check(x.to_go_T, [2.0, 2.5, 1.0, 0.0, 4.0, 5.0, 5.0])


def test_rloo_by_hand():
    """Pairs: each minus the other. Four responses to one prompt: the others' means are 5/3, 2, 7/3 and 1."""
    check(rloo(rollouts(REWARDS, 2), settings("rloo", 2)), [1.0, 1.0, -1.0, -4.0, 4.0, 4.0, 4.0])
    four = [1 / 3, 1 / 3, -1.0, -7 / 3, 3.0, 3.0, 3.0]
    check(rloo(rollouts(REWARDS, 4), settings("rloo", 4)), four)


def test_rloo_by_token_leaves_out_the_rewards_before():
    ppo = settings("rloo", 2, credit="token")
    check(rloo(rollouts(REWARDS, 2), ppo), [2.0 - 1, 2.5 - 1, 1.0 - 2, 0.0 - 4, 4.0, 5.0, 5.0])


def test_grpo_by_hand():
    """Pairs: means 1.5 and 2, deviations of one degree of freedom sqrt(0.5) and sqrt(8)."""
    first, second = 0.5 / (0.5**0.5 + 1e-4), 2 / (8**0.5 + 1e-4)
    expected = [first, first, -first, -second, second, second, second]
    check(grpo(rollouts(REWARDS, 2), settings("grpo", 2)), expected)
    undivided = [0.5, 0.5, -0.5, -2.0, 2.0, 2.0, 2.0]
    check(grpo(rollouts(REWARDS, 2), settings("grpo", 2, advantage_scale="none")), undivided)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_equal_returns_have_no_advantage(name):
    """0.1 has no exact float32; sums of different lengths must not become advantages."""
    x = rollouts([0.0, 0.1, 0.1, 0.1, 0.0, 0.0, 0.1], 4)
    assert not ESTIMATORS[name](x, settings(name, 4)).any()
