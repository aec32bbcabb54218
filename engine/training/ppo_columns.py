"""Columns of a rollout that PPO computes before the first update: log-probabilities, values, rewards, advantages.

Shapes: T tokens, A selected action columns, S sequences, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.batch import PackedBatch, action_columns
from engine.objectives.advantages import Rollouts, action_rewards, moments, whiten
from engine.objectives.losses import kl_estimate
from engine.packing import Microbatch
from engine.settings import PPOSettings
from engine.training.estimators import estimator_of
from engine.training.trunk import rows_of


@torch.no_grad()
def old_logprobs_and_values(
    policy: Callable[..., tuple[Tensor, Tensor, Tensor | None]],
    reference: Callable[..., Tensor],
    batch: PackedBatch,
    trunk_TD: Tensor | None,
    critic_trunk_TD: Tensor | None,
    action_T: Tensor,
    plan: Sequence[Microbatch],
    temperature: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return float32 [T] each: log-probability, value, reference log-probability; 0 at columns without an action.

    Without a critic there is no value.
    """
    logprob_T = torch.zeros(batch.num_tokens, device=action_T.device)
    value_T, ref_logprob_T = None, torch.zeros_like(logprob_T)
    for microbatch in plan:
        columns_M = batch.columns(microbatch.indices)
        part, trunk = batch.select(microbatch.indices), rows_of(trunk_TD, columns_M)
        critic_trunk = rows_of(critic_trunk_TD, columns_M)
        columns_A = action_columns(part, action_T[columns_M])
        where_A = columns_M[columns_A]
        logprob_T[where_A], _, value_A = policy(part, trunk, columns_A, temperature, critic_trunk)
        if value_A is not None:
            value_T = torch.zeros_like(logprob_T) if value_T is None else value_T
            value_T[where_A] = value_A
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
    columns: tuple[Tensor, Tensor | None, Tensor],
    final_S: Tensor,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return float32 [T] each: KL estimate, reward, advantage, return.

    `columns` come from `old_logprobs_and_values`, `final_S` from `final_rewards`; `kl_coef` is the weight of the KL in
    the reward. With a critic, advantages are whitened; without one there is no return.
    """
    logprob_T, value_T, ref_logprob_T = columns
    kl_T = kl_estimate(logprob_T, ref_logprob_T, ppo.estimator)
    reward_T = action_rewards(kl_T, action_T, batch.sequence_T, final_S, kl_coef)
    rollouts = Rollouts(batch, action_T, reward_T, value_T, ppo.samples_per_prompt, sum_over_ranks)
    advantage_T = estimator_of(ppo.advantage)(rollouts, ppo)
    if value_T is None:
        return kl_T, reward_T, advantage_T, None
    return_T = torch.where(action_T, advantage_T + value_T, 0.0)
    return kl_T, reward_T, whiten(advantage_T, action_T, sum_over_ranks(moments(advantage_T, action_T))), return_T
