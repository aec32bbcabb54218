"""Several rewards at once, each scored apart, added up with the weights of --reward.

Shapes: S sequences, R rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.batch import PackedBatch
from engine.settings import Reward
from engine.training.modules import Policy
from engine.training.scorers import OneScorer, RewardModelScorer, load_scorer


class WeightedScorers:
    """Scorers with a name and a weight each. Those that share the policy's trunk read it, the others run their own.

    `first_model` is the scorer of the first reward model in the list, if there is one. A separate critic starts as it,
    and only its trunk's output is kept for the critic.
    """

    def __init__(self, rewards: Sequence[Reward], scorers: Sequence[OneScorer]):
        self.rewards, self.scorers = rewards, scorers
        self.names, self.weights = [r.name for r in rewards], [r.weight for r in rewards]
        self.shares_trunk = any(scorer.shares_trunk for scorer in scorers)
        models = [i for i, scorer in enumerate(scorers) if isinstance(scorer, RewardModelScorer)]
        self.first_model = scorers[models[0]] if models else None
        self.first_weight = self.weights[models[0]] if models else 1.0

    @property
    def trunk(self) -> nn.Module | None:
        """The own trunk of the first reward model."""
        return None if self.first_model is None else self.first_model.trunk

    def own_trunk(self, batch: PackedBatch) -> Tensor:
        """Run the first reward model's own trunk: [T, D]."""
        return self.first_model.own_trunk(batch)

    def __call__(
        self,
        batch: PackedBatch,
        trunk_TD: Tensor | None,
        prompts: Sequence[str],
        responses: Sequence[str],
        outputs: Sequence[str],
        own_trunk_TD: Tensor | None = None,
    ) -> Tensor:
        """Return float32 [R, S], the scores by each reward, without weights. Arguments as of one scorer."""
        score_RS = []
        for scorer in self.scorers:
            own_TD = own_trunk_TD if scorer is self.first_model else None
            score_RS.append(scorer(batch, trunk_TD, prompts, responses, outputs, own_TD))
        return torch.stack(score_RS)

    def add_up(self, score_RS: Tensor) -> Tensor:
        """Return float32 [S], the weighted sum."""
        return sum(weight * score_S for weight, score_S in zip(self.weights, score_RS))

    def measures(self, score_RS: Tensor) -> dict[str, list[float]]:
        """Return the weighted sum of each sequence as "score", and the scores by each reward as "score/NAME"."""
        parts = {f"score/{name}": score_S.tolist() for name, score_S in zip(self.names, score_RS)}
        return {"score": self.add_up(score_RS).tolist(), **parts}


Scorer = OneScorer | WeightedScorers


def load_rewards(
    rewards: Sequence[Reward],
    policy: nn.Module,
    split: int | None,
    tokenizer,
    tokens_per_microbatch: int,
    offload: bool = False,
) -> Scorer:
    """Load what --reward names, as `load_scorer` does. One reward of weight 1 is a scorer by itself."""
    scorers = [load_scorer(r.spec, policy, split, tokenizer, tokens_per_microbatch, offload) for r in rewards]
    if len(rewards) == 1 and rewards[0].weight == 1:
        return scorers[0]
    return WeightedScorers(rewards, scorers)


def each(scorer: Scorer) -> Sequence[OneScorer]:
    """Return the scorers of all rewards."""
    return scorer.scorers if isinstance(scorer, WeightedScorers) else [scorer]


def start_critic(policy: Policy, scorer: Scorer) -> None:
    """Give the policy a separate critic: the first reward model, times its weight, else a copy of the policy's body."""
    model, weight = scorer, 1.0
    if isinstance(scorer, WeightedScorers):
        model, weight = scorer.first_model, scorer.first_weight
    if isinstance(model, RewardModelScorer):
        policy.separate_critic(model.module, model.mean, model.std / weight)
    else:
        policy.separate_critic(None)
