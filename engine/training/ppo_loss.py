"""The PPO loss: run the current policy over rollouts and compare it with their old log-probabilities and values.

Shapes: T tokens, A action columns, D model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from engine.objectives.experience import Experience
from engine.objectives.losses import policy_loss, value_loss
from engine.settings import PPOSettings


@dataclass(frozen=True)
class PPOTerms:
    """What the loss is made of, in the order it is computed. Losses and counts are sums over actions."""

    logprob_A: Tensor  # float32
    entropy_A: Tensor  # float32
    value_A: Tensor  # float32
    log_ratio_A: Tensor  # float32, log pi_new(a) - log pi_old(a)
    policy: Tensor
    policy_clipped: Tensor  # actions whose loss the clip decided
    value: Tensor
    value_clipped: Tensor
    loss: Tensor


def ppo_loss(policy: Callable[..., tuple[Tensor, Tensor, Tensor]], x: Experience, ppo: PPOSettings) -> PPOTerms:
    """Run the policy over the rollouts `x`: minus the clipped surrogate, plus vf_coef times the clipped value loss.

    `policy` is called as engine.training.modules.Policy. Trunk outputs that lie in host memory are copied.
    """
    columns_A = x.action_T.nonzero()[:, 0]
    trunk_TD, critic_trunk_TD = (
        None if trunk is None else trunk.to(columns_A.device, non_blocking=True)
        for trunk in (x.trunk_TD, x.critic_trunk_TD)
    )  # fmt: skip
    logprob_A, entropy_A, value_A = policy(x.batch, trunk_TD, columns_A, ppo.temperature, critic_trunk_TD)
    old_A = x.logprob_T[columns_A]
    surrogate, policy_clipped = policy_loss(logprob_A, old_A, x.advantage_T[columns_A], ppo.clip)
    value, value_clipped = value_loss(value_A, x.value_T[columns_A], x.return_T[columns_A], ppo.value_clip)
    loss = surrogate + ppo.vf_coef * value
    return PPOTerms(
        logprob_A, entropy_A, value_A, logprob_A - old_A, surrogate, policy_clipped, value, value_clipped, loss
    )
