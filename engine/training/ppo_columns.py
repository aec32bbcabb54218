"""Columns of a rollout that PPO computes before the first update: log-probabilities, values, rewards, advantages.

Shapes: T tokens, A selected action columns, S sequences, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.objectives.advantages import action_rewards, gae, moments, whiten
from engine.objectives.losses import kl_estimate
from engine.packing import Microbatch
from engine.settings import PPOSettings
from engine.training.trunk import rows_of


@torch.no_grad()
def old_logprobs_and_values(
    policy: Callable[..., tuple[Tensor, Tensor, Tensor]],
    reference: Callable[..., Tensor],
    batch: PackedBatch,
    trunk_TD: Tensor | None,
    critic_trunk_TD: Tensor | None,
    action_T: Tensor,
    plan: Sequence[Microbatch],
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 [T] each: log-probability, value, reference log-probability; 0 at columns without an action."""
    logprob_T = torch.zeros(batch.num_tokens, device=action_T.device)
    value_T, ref_logprob_T = torch.zeros_like(logprob_T), torch.zeros_like(logprob_T)
    for microbatch in plan:
        columns_M = batch.columns(microbatch.indices)
        part, trunk = batch.select(microbatch.indices), rows_of(trunk_TD, columns_M)
        critic_trunk = rows_of(critic_trunk_TD, columns_M)
        columns_A = action_T[columns_M].nonzero()[:, 0]
        where_A = columns_M[columns_A]
        logprob_T[where_A], _, value_T[where_A] = policy(part, trunk, columns_A, temperature, critic_trunk)
        ref_logprob_T[where_A] = reference(part, trunk, columns_A, temperature)
    return logprob_T, value_T, ref_logprob_T


def final_rewards(ppo: PPOSettings, score_S: Tensor, ended_S: Tensor) -> Tensor:
    """Return float32 [S], the reward of each response's last action: its score, minus a penalty without an EOS."""
    return score_S - ppo.missing_eos_penalty * ~ended_S


def initial_value_offset(
    value_T: Tensor, action_T: Tensor, final_S: Tensor, sum_over_ranks: Callable[[Tensor], Tensor]
) -> float:
    """Return the mean final reward minus the mean value of the first rollouts, over all ranks: the new critic's offset.

    With lambda below 1, a constant gap between critic and scores becomes advantages that depend on the length of the
    answers: PPO would first learn a length.
    """
    own = [final_S.sum(), torch.full_like(final_S.sum(), len(final_S)), value_T[action_T].sum(), action_T.sum()]
    final, responses, value, actions = sum_over_ranks(torch.stack([x.double() for x in own])).tolist()
    return final / responses - value / actions


def rewards_and_advantages(
    ppo: PPOSettings,
    kl_coef: float,
    batch: PackedBatch,
    action_T: Tensor,
    columns: tuple[Tensor, Tensor, Tensor],
    final_S: Tensor,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return float32 [T] each: KL estimate, reward, whitened advantage, return.

    `columns` come from `old_logprobs_and_values`, `final_S` from `final_rewards`.
    """
    logprob_T, value_T, ref_logprob_T = columns
    kl_T = kl_estimate(logprob_T, ref_logprob_T, ppo.kl_estimator)
    reward_T = action_rewards(kl_T, action_T, batch.sequence_T, final_S, kl_coef)
    advantage_T, return_T = gae(reward_T, value_T, action_T, batch.sequence_T, ppo.gamma, ppo.lam, batch.max_len)
    advantage_T = whiten(advantage_T, action_T, sum_over_ranks(moments(advantage_T, action_T)))
    return kl_T, reward_T, advantage_T, return_T
