"""The rewards that --reward names: each a reward model's directory or module:function, with a weight and a name."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import UserError

EXPORTED = "model"  # the folder that every run exports its model to, which names nothing


@dataclass(frozen=True)
class Reward:
    """One reward.

    spec    a directory, module:function or module:factory(settings)
    weight  of its score in the sum
    name    in metrics: the function's name, or the directory's last part that is not "model"
    """

    spec: str
    weight: float = 1.0

    @property
    def is_function(self) -> bool:
        return is_function_name(self.spec)

    @property
    def name(self) -> str:
        if self.is_function:
            return self.spec.partition(":")[2].partition("(")[0]
        parts = [part for part in Path(os.path.abspath(self.spec)).parts if part != EXPORTED]
        return parts[-1]

    def __str__(self) -> str:
        return self.spec if self.weight == 1 else f"{self.spec}:{self.weight:g}"


def is_function_name(spec: str) -> bool:
    return ":" in spec and not os.path.exists(spec)


def parse_rewards(items: Sequence[str]) -> list[Reward]:
    """Return the rewards of --reward. UserError for a weight that is 0 or not finite, and for two of one name."""
    rewards: list[Reward] = []
    for item in items:
        reward = _parse(item)
        for other in rewards:
            if _identity(other) == _identity(reward):
                raise UserError(f"--reward {reward.spec} is given twice: give it once, with the sum of the weights")
            if other.name == reward.name:
                raise UserError(
                    f"--reward {other.spec} and {reward.spec} are both called {reward.name} in the metrics: rename one "
                    "function or folder, or give one by a link of another name"
                )
        rewards.append(reward)
    return rewards


def _parse(item: str) -> Reward:
    """Split the weight off: a number after the last colon."""
    if not item.strip():
        raise UserError("--reward is empty: give a reward model's directory or module:function")
    spec, colon, text = item.rpartition(":")
    if not colon or os.path.exists(item):
        return Reward(item)
    try:
        weight = float(text)
    except ValueError:
        return Reward(item)
    if text.isidentifier() and not is_function_name(spec) and not os.path.exists(spec):
        return Reward(item)  # a function called inf or nan
    if not math.isfinite(weight) or weight == 0:
        raise UserError(f"--reward {item}: the weight is {text}, give a finite number other than 0")
    return Reward(spec, weight)


def _identity(reward: Reward) -> str:
    return reward.spec if reward.is_function else os.path.realpath(reward.spec)
