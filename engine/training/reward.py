"""Reward-model training on true K-wise rankings: K responses, K sequences forwarded once, all pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.cli.console import short
from engine.objectives.losses import ranking_loss, ranking_pairs
from engine.packing import first_fit_decreasing
from engine.text.encoding import RankedExamples
from engine.training.context import Context
from engine.training.metrics import Metrics
from engine.training.modules import RewardModule
from engine.training.ranking_trainer import RankingTrainer
from engine.training.trunk import FrozenWeights, Trunk, rows_of, trunk_parameters


class RewardTrainer(RankingTrainer):
    """Minimise the mean over prompts of each prompt's mean pairwise loss (Ouyang et al. 2022)."""

    name = "reward"

    def __init__(
        self,
        model: torch.nn.Module,
        score_weight_D: Tensor,
        rankings: Sequence[RankedExamples],
        heldout: Sequence[RankedExamples],
        context: Context,
    ):
        split = max(0, model.num_layers - context.stage.num_top_layers)
        frozen, trunk = FrozenWeights(trunk_parameters(model, split)), Trunk(model, split)
        module = RewardModule(model, score_weight_D, split)
        super().__init__(module, model, trunk, frozen, rankings, heldout, context)

    def loss(self, records: Sequence[RankedExamples], indices: Sequence[int] | None) -> tuple[Tensor, dict]:
        loss, right, pairs = reward_loss(self._scores(records, indices), [r.ranks for r in records])
        return loss, {"reward/accuracy": (right, pairs)}

    def measure(self) -> tuple[dict[str, float], dict[str, float], str]:
        """The share of the held-out pairs that the scores order rightly; equal scores count as wrong."""
        metrics = Metrics()
        for chosen, score_S, weight in self._scored(self.heldout, trained=False):
            _, right, pairs = reward_loss(score_S, [r.ranks for r in chosen])
            metrics.add("accuracy", right * weight, pairs * weight)
        accuracy = metrics.read(self.world)["accuracy"]
        return {"accuracy": accuracy}, {"eval/accuracy": accuracy}, f"{accuracy:.1%} of the pairs ordered rightly"

    def finish(self) -> dict[str, float]:
        """The results, with the mean and standard deviation of the scores of the training responses."""
        self.world.at("the scores' mean and deviation")
        mean, std = self.score_moments()
        return {**self.results, "score_mean": mean, "score_std": std}

    def score_moments(self) -> tuple[float, float]:
        """Mean and standard deviation over the responses of the first 4,096 training rankings, to normalise with."""
        metrics = Metrics()
        for _, score_S, weight in self._scored(self.records[:4096], trained=True):
            score_S = score_S.double()
            metrics.add("mean", score_S.sum() * weight, len(score_S) * weight)
            metrics.add("square", score_S.square().sum() * weight, len(score_S) * weight)
        means = metrics.read(self.world)
        return means["mean"], max(0.0, means["square"] - means["mean"] ** 2) ** 0.5

    def also_show(self, means: Mapping[str, float]) -> dict[str, str]:
        return {"accuracy": short(means["reward/accuracy"])}

    @torch.no_grad()
    def _scored(
        self, rankings: Sequence[RankedExamples], trained: bool
    ) -> Iterator[tuple[list[RankedExamples], Tensor, float]]:
        """Yield (rankings of a pack, their scores on the CPU, weight); `trained`: they begin the training data."""
        for ids, weight in self.packs_of(rankings):
            chosen = [rankings[i] for i in ids]
            yield chosen, self._scores(chosen, ids if trained else None).cpu(), weight

    def _scores(self, rankings: Sequence[RankedExamples], indices: Sequence[int] | None) -> Tensor:
        """float32 [S]: the score of each response, in the order of the rankings; `indices` as in `loss`."""
        responses = self.responses_of(rankings, indices)
        batch = PackedBatch.from_sequences([e.tokens for e in responses.examples], self.world.device)
        return self.zero(batch, self.trunk(batch, responses.rows))[responses.back_S]


def reward_loss(score_S: Tensor, ranks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, int]:
    """(sum over rankings of the mean pairwise loss, number of pairs ordered rightly, number of pairs)."""
    better_P, worse_P, weight_P = (x.to(score_S.device) for x in ranking_pairs(ranks))
    right = (score_S[better_P] > score_S[worse_P]).sum()
    return ranking_loss(score_S, better_P, worse_P, weight_P), right, len(better_P)


@torch.no_grad()
def score_sequences(
    module: RewardModule,
    batch: PackedBatch,
    trunk_TD: Tensor | None,
    tokens_per_microbatch: int,
    trunk: Trunk | None = None,
) -> Tensor:
    """float32 [S]: the scores of a pack of any size, a token budget at a time.

    `trunk_TD` is the output of the layers below the module's; without it `trunk` runs them.
    """
    score_S = torch.empty(batch.num_sequences, device=batch.tokens_T.device)
    for ids in first_fit_decreasing(batch.lengths, tokens_per_microbatch):
        ids = sorted(ids, key=lambda s: batch.lengths[s])
        part, rows = batch.select(ids), rows_of(trunk_TD, batch.columns(ids))
        score_S[ids] = module(part, trunk(part) if trunk and rows is None else rows)
    return score_S
