"""Scores as PPO uses them: normalised by those of the first rollouts if asked, then clipped.

Shapes: S sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from engine.base.errors import UserError
from engine.objectives.advantages import moments
from engine.settings import PPOSettings
from engine.training.metrics import Metrics
from engine.training.scorers import NORMALISED_CLIP, SMALLEST_STD, Scorer, use_scores


class Scores:
    """From a scorer's scores to the ones that are logged and rewarded."""

    def __init__(self, ppo: PPOSettings, scorer: Scorer, sum_over_ranks: Callable[[Tensor], Tensor]):
        self.normalises, self.sum = ppo.score_norm == "rollouts", sum_over_ranks
        self.clip = scorer.clip(NORMALISED_CLIP if self.normalises and ppo.score_clip is None else ppo.score_clip)
        self.norm: tuple[float, float] | None = None  # mean and deviation of the first iteration's scores

    def __call__(self, raw_S: Tensor, metrics: Metrics) -> Tensor:
        """Return float32 [S]. All ranks call it; the first call of a run finds mean and deviation.

        UserError if all scores of the first rollouts are equal.
        """
        if self.normalises:
            if self.norm is None:
                self.norm = self._first(raw_S)
            mean, std = self.norm
            metrics.add("rollout/raw_score", raw_S.sum(), len(raw_S))
            metrics.add("rollout/score_norm_mean", mean)
            metrics.add("rollout/score_norm_std", std)
            raw_S = (raw_S - mean) / std
        score_S, clipped = use_scores(raw_S, self.clip)
        if self.clip is not None:
            metrics.add("rollout/score_clipped", clipped, len(score_S))
        return score_S

    def _first(self, raw_S: Tensor) -> tuple[float, float]:
        count, total, squares = self.sum(moments(raw_S, torch.ones_like(raw_S, dtype=torch.bool))).tolist()
        mean = total / count
        std = math.sqrt(max(0.0, squares / count - mean**2)) if math.isfinite(squares) else math.nan
        if std <= SMALLEST_STD * max(1.0, abs(mean)):
            raise UserError(
                f"--score-norm rollouts: all {count:.0f} scores of the first iteration are {mean:g}, so there is no "
                "deviation to divide by: leave the flag out, or look at the reward"
            )
        return mean, std
