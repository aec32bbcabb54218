"""The columns of a rollout that PPO computes before its first update: log-probabilities, values, rewards, advantages.

Shapes: T tokens, A selected action columns, S sequences, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.advantages import action_rewards, gae, moments, whiten
from engine.batch import PackedBatch
from engine.losses import kl_estimate
from engine.packing import Microbatch
from engine.settings import PPOSettings
from engine.trunk import rows_of


@torch.no_grad()
def acted_columns(
    policy: Callable[..., tuple[Tensor, Tensor, Tensor]],
    reference: Callable[..., Tensor],
    batch: PackedBatch,
    trunk_TD: Tensor | None,
    action_T: Tensor,
    plan: Sequence[Microbatch],
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [T] each: log-probability, value and the reference's log-probability; zero where nothing is acted."""
    logprob_T = torch.zeros(batch.num_tokens, device=action_T.device)
    value_T, ref_logprob_T = torch.zeros_like(logprob_T), torch.zeros_like(logprob_T)
    for microbatch in plan:
        columns_M = batch.columns(microbatch.ids)
        part, trunk = batch.select(microbatch.ids), rows_of(trunk_TD, columns_M)
        columns_A = action_T[columns_M].nonzero()[:, 0]
        where_A = columns_M[columns_A]
        logprob_T[where_A], _, value_T[where_A] = policy(part, trunk, columns_A, temperature)
        ref_logprob_T[where_A] = reference(part, trunk, columns_A, temperature)
    return logprob_T, value_T, ref_logprob_T


def rewarded_columns(
    ppo: PPOSettings,
    kl_coef: float,
    batch: PackedBatch,
    action_T: Tensor,
    columns: tuple[Tensor, Tensor, Tensor],
    score_S: Tensor,
    ended_S: Tensor,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float32 [T] each: the KL that is charged, reward, whitened advantage, return.

    `columns` are those of `acted_columns`, `ended_S` says which responses have an EOS.
    """
    logprob_T, value_T, ref_logprob_T = columns
    end_S = score_S - ppo.missing_eos_penalty * ~ended_S
    kl_T = kl_estimate(logprob_T, ref_logprob_T, ppo.kl_estimator)
    reward_T = action_rewards(kl_T, action_T, batch.sequence_T, end_S, kl_coef)
    advantage_T, return_T = gae(reward_T, value_T, action_T, batch.sequence_T, ppo.gamma, ppo.lam, batch.max_len)
    advantage_T = whiten(advantage_T, action_T, sum_over_ranks(moments(advantage_T, action_T)))
    return kl_T, reward_T, advantage_T, return_T
