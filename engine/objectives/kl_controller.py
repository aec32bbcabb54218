"""The weight of the KL penalty: fixed, or adapted towards a target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class KLController:
    """Adaptive as in Ziegler et al. 2019, section 2.2; fixed when there is no target.

    coef is multiplied by 1 + error * rollouts / horizon after each iteration, where error is the relative distance of
    the observed KL (nats per response) from the target, clipped to +-0.2.
    """

    coef: float
    target: float | None
    horizon: float

    def update(self, observed: float, rollouts: int) -> None:
        if self.target is not None:
            error = min(max(observed / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * rollouts / self.horizon
