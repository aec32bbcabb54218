"""The advantage estimator of a run: one of ours by its name, or any function of (rollouts, settings)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.base.errors import UserError
from engine.base.imported import import_function
from engine.objectives.advantages import ESTIMATORS, Rollouts
from engine.settings import FEWEST_SAMPLES, PPOSettings


def estimator_of(name: str) -> Callable[[Rollouts, PPOSettings], Tensor]:
    """Return the estimator of a name or module:function. UserError if there is none.

    What a user's function returns must be float32 [T]; it is set to 0 at columns without an action.
    """
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    known = f"{', '.join(FEWEST_SAMPLES)} or module:function"
    function = import_function(name, "--advantage", ("rollouts", "settings"), known)

    def checked(x: Rollouts, ppo: PPOSettings) -> Tensor:
        advantage_T = function(x, ppo)
        if not isinstance(advantage_T, Tensor) or advantage_T.shape != x.reward_T.shape:
            got = tuple(advantage_T.shape) if isinstance(advantage_T, Tensor) else repr(advantage_T)[:60]
            raise UserError(
                f"--advantage {name} gave {got}: return a tensor of one number per token, {tuple(x.reward_T.shape)}"
            )
        return torch.where(x.action_T, advantage_T.float(), 0.0)

    return checked
