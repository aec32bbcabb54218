"""The PPO loss: run the current policy over rollouts and compare it with what was kept of them.

Shapes: T tokens, A action columns, D model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.batch import action_columns
from engine.objectives.experience import Experience
from engine.objectives.losses import kl_loss, mean_per_sequence, policy_loss, value_loss
from engine.settings import PPOSettings


@dataclass(frozen=True)
class PPOTerms:
    """What the loss is made of, in the order it is computed. Losses and counts are sums over actions.

    With `loss_mean` sequence, the losses are sums over responses of means over their actions.
    """

    logprob_A: Tensor  # float32
    entropy_A: Tensor  # float32
    value_A: Tensor | None  # float32
    log_ratio_A: Tensor  # float32, log pi_new(a) - log pi_old(a)
    policy: Tensor
    policy_clipped: Tensor  # actions whose loss the clip decided
    kl: Tensor | None  # with the KL penalty in the loss
    value: Tensor | None  # with a critic, as the next
    value_clipped: Tensor | None
    loss: Tensor
    divisor: int  # by which the sums become this microbatch's mean


def divisor_of(ppo: PPOSettings, actions: Any, rollouts: Any) -> Any:
    """Return what a sum of losses is divided by, from the numbers of actions and of rollouts in it."""
    if ppo.loss_mean == "token":
        return actions
    return rollouts * (ppo.max_new_tokens if ppo.loss_mean == "constant" else 1)


def half_square(terms: PPOTerms) -> Tensor:
    """Return the sum over actions of half the squared log ratio, an estimate (k2) of the KL between the two policies.

    Its mean is policy/approxkl_avg, and what --target-kl limits.
    """
    return 0.5 * terms.log_ratio_A.detach().square().sum()


def ppo_loss(
    policy: Callable[..., tuple[Tensor, Tensor, Tensor | None]],
    x: Experience,
    ppo: PPOSettings,
    kl_coef: float,
    policy_coef: float = 1.0,
) -> PPOTerms:
    """Run the policy over the rollouts `x`: minus the clipped surrogate, plus the KL and the value loss, if any.

    `policy` is called as engine.training.modules.Policy. Surrogate and KL are multiplied by `policy_coef`, 0 while the
    critic trains alone. Trunk outputs that lie in host memory are copied.
    """
    columns_A = action_columns(x.batch, x.action_T)
    trunk_TD, critic_trunk_TD = (
        None if trunk is None else trunk.to(columns_A.device, non_blocking=True)
        for trunk in (x.trunk_TD, x.critic_trunk_TD)
    )  # fmt: skip
    logprob_A, entropy_A, value_A = policy(x.batch, trunk_TD, columns_A, ppo.temperature, critic_trunk_TD)
    weight_A = None
    if ppo.loss_mean == "sequence":
        weight_A = mean_per_sequence(x.batch.sequence_T[columns_A], x.batch.num_sequences)
    old_A = x.logprob_T[columns_A]
    surrogate, policy_clipped = policy_loss(logprob_A, old_A, x.advantage_T[columns_A], ppo.clip, weight_A)
    loss, kl, value, value_clipped = surrogate, None, None, None
    if ppo.kl_in == "loss":
        kl = kl_loss(logprob_A, x.ref_logprob_T[columns_A], ppo.estimator, weight_A)
        loss = loss + kl_coef * kl
    loss = policy_coef * loss
    if value_A is not None:
        value, value_clipped = value_loss(
            value_A, x.value_T[columns_A], x.return_T[columns_A], ppo.value_clip, weight_A
        )
        loss = loss + ppo.vf_coef * value
    return PPOTerms(
        logprob_A, entropy_A, value_A, logprob_A - old_A, surrogate, policy_clipped, kl, value, value_clipped, loss,
        divisor_of(ppo, len(columns_A), x.batch.num_sequences),
    )  # fmt: skip
