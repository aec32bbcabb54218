"""Compute rewards, advantages and whitening over the action columns of a pack; the estimators of advantages by name.

Shapes: T tokens, A action columns, S sequences, G prompts, K responses to each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.settings import PPOSettings
from kernels.segment_scan import segment_scan


def action_rewards(kl_T: Tensor, action_T: Tensor, sequence_T: Tensor, score_S: Tensor, kl_coef: float) -> Tensor:
    """Return float32 [T]: -kl_coef * kl at each action, plus the sequence's score at its last action, 0 elsewhere.

    kl_T float32 [T]; action_T bool [T]; sequence_T int64 [T]; score_S float32 [S].
    """
    columns_A = action_T.nonzero()[:, 0]
    owner_A = sequence_T[columns_A]
    last = torch.ones_like(owner_A, dtype=torch.bool)
    last[:-1] = owner_A[1:] != owner_A[:-1]
    reward_T = torch.where(action_T, -kl_coef * kl_T, 0.0)
    reward_T[columns_A[last]] += score_S[owner_A[last]]
    return reward_T


def gae(
    reward_T: Tensor, value_T: Tensor, action_T: Tensor, sequence_T: Tensor, gamma: float, lam: float, max_len: int
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over the actions of each sequence.

    delta_t = r_t + gamma V_{t+1} - V_t, where t + 1 is the sequence's next action and V is 0 after its last one;
    A_t = delta_t + gamma lambda A_{t+1}. Columns without an action are skipped and do not count as time.
    Returns (advantage_T, return_T), float32 [T], 0 without an action; returns are advantages + values.
    """
    columns_A = action_T.nonzero()[:, 0]
    owner_A, value_A = sequence_T[columns_A], value_T[columns_A]
    next_A = torch.zeros_like(value_A)
    next_A[:-1] = torch.where(owner_A[1:] == owner_A[:-1], value_A[1:], 0.0)
    delta_A = reward_T[columns_A] + gamma * next_A - value_A
    advantage_A = segment_scan(delta_A, owner_A, gamma * lam, max_len)
    advantage_T, return_T = torch.zeros_like(value_T), torch.zeros_like(value_T)
    advantage_T[columns_A] = advantage_A
    return_T[columns_A] = advantage_A + value_A
    return advantage_T, return_T


@dataclass(frozen=True)
class Rollouts:
    """What an estimator of advantages reads: the rollouts that one rank has made in an iteration.

    The K responses to a prompt follow each other and lie on one rank, so a column [S] may be viewed as [G, K].
    """

    batch: PackedBatch
    action_T: Tensor  # bool
    reward_T: Tensor  # float32, 0 without an action
    value_T: Tensor | None  # float32, the critic's; None without a critic
    samples: int  # K
    sum_over_ranks: Callable[[Tensor], Tensor]

    @cached_property
    def to_go_T(self) -> Tensor:
        """float32 [T]: the sum of a response's rewards from each action on; 0 without an action."""
        zero_T, batch = torch.zeros_like(self.reward_T), self.batch
        return gae(self.reward_T, zero_T, self.action_T, batch.sequence_T, 1.0, 1.0, batch.max_len)[0]

    @cached_property
    def return_S(self) -> Tensor:
        """float32 [S]: the sum of a response's rewards."""
        columns_A = self.action_T.nonzero()[:, 0]
        owner_A = self.batch.sequence_T[columns_A]
        first_A = torch.ones_like(owner_A, dtype=torch.bool)
        first_A[1:] = owner_A[1:] != owner_A[:-1]
        return_S = self.reward_T.new_zeros(self.batch.num_sequences)
        return_S[owner_A[first_A]] = self.to_go_T[columns_A[first_A]]
        return return_S

    def at_actions(self, x_S: Tensor) -> Tensor:
        """Return float32 [T]: each response's number at all of its actions, 0 elsewhere."""
        return torch.where(self.action_T, x_S.float()[self.batch.sequence_T], 0.0)


def critic(x: Rollouts, ppo: PPOSettings) -> Tensor:
    """Return float32 [T]: generalised advantages over the critic's values."""
    return gae(x.reward_T, x.value_T, x.action_T, x.batch.sequence_T, ppo.gamma, ppo.lam, x.batch.max_len)[0]


def rloo(x: Rollouts, ppo: PPOSettings) -> Tensor:
    """Return float32 [T]: a response's return minus the mean return of the other K - 1 (Ahmadian et al. 2024).

    With `credit` token, an action's return leaves out the rewards before it, which it could not change.
    """
    return_GK = x.return_S.double().view(-1, x.samples)
    others_GK = (return_GK.sum(1, keepdim=True) - return_GK) / (x.samples - 1)
    if ppo.credit == "token":
        return x.to_go_T - x.at_actions(others_GK.flatten())
    return x.at_actions((return_GK - others_GK).flatten())


def grpo(x: Rollouts, ppo: PPOSettings) -> Tensor:
    """Return float32 [T]: a response's return minus the mean of the K, over their deviation (Shao et al. 2024).

    The deviation counts K - 1 degrees of freedom, plus 1e-4 for equal returns. With `advantage_scale` none it does not
    divide: it makes prompts that are nearly always or nearly never answered well weigh more (Liu et al. 2025).
    """
    return_GK = x.return_S.double().view(-1, x.samples)
    advantage_GK = return_GK - return_GK.mean(1, keepdim=True)
    if ppo.advantage_scale == "std":
        advantage_GK = advantage_GK / (return_GK.std(1, keepdim=True) + 1e-4)
    return x.at_actions(advantage_GK.flatten())


# The names are those of engine.settings.FEWEST_SAMPLES; only gae reads values.
ESTIMATORS: dict[str, Callable[[Rollouts, PPOSettings], Tensor]] = {"gae": critic, "rloo": rloo, "grpo": grpo}


def moments(x_T: Tensor, select_T: Tensor) -> Tensor:
    """Return float64 [3]: count, sum and sum of squares of the selected columns. Sum them over ranks."""
    x = x_T[select_T].double()
    return torch.stack([torch.full_like(x.sum(), x.numel()), x.sum(), x.square().sum()])


def whiten(x_T: Tensor, select_T: Tensor, moments_3: Tensor) -> Tensor:
    """Return (x - mean) / sqrt(variance + 1e-8) where selected, 0 elsewhere, from summed moments."""
    count, total, squares = moments_3.unbind()
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    white = (x_T.double() - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(select_T, white, 0.0).to(x_T.dtype)
