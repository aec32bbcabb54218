"""Scores as PPO uses them: normalised by those of the first rollouts if asked, then clipped, then added up.

Shapes: S sequences, R rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.base.errors import UserError
from engine.objectives.advantages import moments
from engine.settings import PPOSettings
from engine.training.metrics import Metrics
from engine.training.scorers import NORMALISED_CLIP, SMALLEST_STD, use_scores
from engine.training.weighted_scorers import Scorer, WeightedScorers, each

Norm = Sequence[float]  # mean and deviation


class Scores:
    """From a scorer's scores to the ones that are logged and rewarded. Each reward has its own normalisation and clip.

    `norms` has the moments of the first iteration's scores of each reward; None before it, and without --score-norm.
    """

    def __init__(self, ppo: PPOSettings, scorer: Scorer, sum_over_ranks: Callable[[Tensor], Tensor]):
        self.normalises, self.sum = ppo.score_norm == "rollouts", sum_over_ranks
        asked = NORMALISED_CLIP if self.normalises and ppo.score_clip is None else ppo.score_clip
        self.clips = [one.clip(asked) for one in each(scorer)]
        self.norms: list[Norm | None] = [None] * len(self.clips)
        self.several = scorer if isinstance(scorer, WeightedScorers) else None

    def __call__(self, raw: Tensor, metrics: Metrics) -> Tensor:
        """Return float32 [S] for [S] of one scorer, or the weighted sum of [R, S] of several.

        All ranks call it; the first call of a run finds mean and deviation. UserError if all scores of the first
        rollouts are equal.
        """
        if self.several is None:
            return self._used(0, raw, metrics)
        used_RS = [self._used(r, raw_S, metrics, f"/{name}") for r, (name, raw_S) in enumerate(zip(self._names, raw))]
        for name, used_S in zip(self._names, used_RS):
            metrics.add(f"rollout/score/{name}", used_S.sum(), len(used_S))
        return self.several.add_up(used_RS)

    def _used(self, r: int, raw_S: Tensor, metrics: Metrics, suffix: str = "") -> Tensor:
        """Normalise and clip the scores of one reward: float32 [S]. `suffix` goes to the names of its metrics."""
        if self.normalises:
            if self.norms[r] is None:
                self.norms[r] = self._first(raw_S, suffix)
            mean, std = self.norms[r]
            metrics.add(f"rollout/raw_score{suffix}", raw_S.sum(), len(raw_S))
            metrics.add(f"rollout/score_norm_mean{suffix}", mean)
            metrics.add(f"rollout/score_norm_std{suffix}", std)
            raw_S = (raw_S - mean) / std
        score_S, clipped = use_scores(raw_S, self.clips[r])
        if self.clips[r] is not None:
            metrics.add("rollout/score_clipped", clipped, len(score_S))  # several rewards: the share of all scores
            if suffix:
                metrics.add(f"rollout/score_clipped{suffix}", clipped, len(score_S))
        return score_S

    def _first(self, raw_S: Tensor, suffix: str) -> Norm:
        count, total, squares = self.sum(moments(raw_S, torch.ones_like(raw_S, dtype=torch.bool))).tolist()
        mean = total / count
        std = math.sqrt(max(0.0, squares / count - mean**2)) if math.isfinite(squares) else math.nan
        if std <= SMALLEST_STD * max(1.0, abs(mean)):
            of = f" of {suffix[1:]}" if suffix else ""
            raise UserError(
                f"--score-norm rollouts: all {count:.0f} scores{of} of the first iteration are {mean:g}, so there is "
                "no deviation to divide by: leave the flag out, or look at the reward"
            )
        return mean, std

    def state(self) -> Any:
        """Return what a checkpoint keeps, for JSON: the moments, of several rewards by their names."""
        return self.norms[0] if self.several is None else dict(zip(self._names, self.norms))

    def restore(self, state: Any) -> None:
        """Continue with what `state` returned. A reward that has no moments there gets those of the next rollouts."""
        if self.several is None:
            self.norms = [None if isinstance(state, Mapping) else state]
        else:
            kept = state if isinstance(state, Mapping) else {}
            self.norms = [kept.get(name) for name in self._names]

    @property
    def _names(self) -> list[str]:
        return self.several.names
