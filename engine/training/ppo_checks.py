"""Checks that PPO's settings, data and ranks fit together, before any work is done."""

from __future__ import annotations

from engine.base.errors import UserError
from engine.settings import PPOSettings


def check_iteration(ppo: PPOSettings, batch_size: int) -> None:
    """UserError for an iteration of one rollout, and for one that the KL controller cannot follow."""
    if batch_size < 2:
        raise UserError(f"--batch-size is {batch_size}: PPO compares the rollouts of an iteration: give 2 or more")
    if ppo.kl_controller == "adaptive" and not ppo.kl_horizon >= batch_size:
        raise UserError(
            f"--kl-horizon is {ppo.kl_horizon}, --batch-size is {batch_size}: an iteration could change the KL weight "
            "by more than a fifth, raise --kl-horizon to the batch size or above"
        )


def check_rollouts(prompts: int, batch_size: int, ranks: int) -> None:
    """UserError unless each iteration has a rollout for every rank, and at least two in all."""
    if min(prompts, batch_size) < ranks:
        raise UserError(
            f"{prompts} prompts in iterations of {batch_size} leave one of {ranks} ranks without any: give more "
            "prompts, a larger --batch-size, or fewer ranks"
        )
    if prompts < 2:
        raise UserError("there is one prompt: PPO compares the rollouts of an iteration, give 2 prompts or more")
