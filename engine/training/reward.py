"""Reward-model training on true K-wise rankings: K responses, K sequences forwarded once, all pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.cli.console import short
from engine.objectives.losses import ranking_loss, ranking_pairs
from engine.packing import pack_together
from engine.text.encoding import RankedExamples
from engine.training.context import Context
from engine.training.heldout import Estimate, as_share
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
        module = RewardModule(model, score_weight_D, split, context.batch.recompute)
        super().__init__(module, model, trunk, frozen, rankings, heldout, context)

    def loss(self, records: Sequence[RankedExamples], indices: Sequence[int] | None) -> tuple[Tensor, dict]:
        loss, right, pairs = reward_loss(self._scores(records, indices), [r.ranks for r in records])
        return loss, {"reward/accuracy": (right, pairs)}

    def measure(self) -> tuple[dict[str, Any], dict[str, float], str]:
        """Loss, and the share of the pairs that the scores order rightly, with half of its 95 % interval over prompts.

        Equal scores count as wrong. Pairs weigh equally, but those of one prompt, in one ranking or several, are not
        independent: the interval is that of a ratio over prompts.
        """
        mine: dict[int, tuple[float, int, int]] = {}
        for ids, weight in self.packs_of(self.heldout):
            chosen = [self.heldout[i] for i in ids]
            score_S = self._scores(chosen, None).cpu()
            for i, own_S in zip(ids, score_S.split([len(r.examples) for r in chosen])):
                if weight:
                    loss, right, pairs = reward_loss(own_S, [self.heldout[i].ranks])
                    mine[i] = float(loss), int(right), pairs
        found = {i: numbers for part in self.world.gather(mine) for i, numbers in part.items()}
        losses = [found[i][0] for i in range(len(self.heldout))]
        sums: dict[tuple[int, ...], list[int]] = {}  # of each prompt: pairs ordered rightly, pairs
        for i, ranking in enumerate(self.heldout):
            one = sums.setdefault(ranking.examples[0].tokens[: ranking.examples[0].prompt_len], [0, 0])
            one[0], one[1] = one[0] + found[i][1], one[1] + found[i][2]
        accuracy = Estimate.of_ratio(*zip(*sums.values()))
        results = {"heldout_loss": math.fsum(losses) / len(losses), "accuracy": accuracy.mean}
        logged = {"eval/loss": results["heldout_loss"], "eval/accuracy": accuracy.mean}
        if len(sums) > 1:  # one prompt has no interval
            results["half_intervals"] = {"accuracy": accuracy.half}
            logged["eval/accuracy_half"] = accuracy.half
        line = f"{as_share(accuracy)} of the pairs ordered rightly, loss {short(results['heldout_loss'])}"
        return results, logged, line

    def finish(self) -> dict[str, float]:
        """The results, with the mean and standard deviation of the scores of the training responses."""
        self.world.at("the scores' mean and deviation")
        mean, std = self.score_moments()
        return {**self.results, "score_mean": mean, "score_std": std}

    def score_moments(self) -> tuple[float, float]:
        """Mean and standard deviation over the responses of the first 4,096 training rankings, to normalise with."""
        metrics = Metrics()
        for score_S, weight in self._scored(self.records[:4096]):
            score_S = score_S.double()
            metrics.add("mean", score_S.sum() * weight, len(score_S) * weight)
            metrics.add("square", score_S.square().sum() * weight, len(score_S) * weight)
        means = metrics.read(self.world)
        return means["mean"], max(0.0, means["square"] - means["mean"] ** 2) ** 0.5

    def also_show(self, means: Mapping[str, float]) -> dict[str, str]:
        return {"accuracy": short(means["reward/accuracy"])}

    @torch.no_grad()
    def _scored(self, rankings: Sequence[RankedExamples]) -> Iterator[tuple[Tensor, float]]:
        """Yield (scores of a pack on the CPU, weight) of rankings that begin the training data."""
        for ids, weight in self.packs_of(rankings):
            yield self._scores([rankings[i] for i in ids], ids).cpu(), weight

    def _scores(self, rankings: Sequence[RankedExamples], indices: Sequence[int] | None) -> Tensor:
        """float32 [S]: the score of each response, in the order of the rankings; `indices` as in `loss`."""
        responses = self.responses_of(rankings, indices)
        batch = PackedBatch.from_sequences(
            [e.tokens for e in responses.examples], self.world.device, [e.prompt_len for e in responses.examples]
        )
        return self.zero(batch, self.trunk(batch, responses.rows))[responses.back_S]


def reward_loss(score_S: Tensor, ranks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, int]:
    """(sum over rankings of the mean pairwise loss, number of pairs ordered rightly, number of pairs)."""
    better_P, worse_P, weight_P = (x.to(score_S.device, non_blocking=True) for x in ranking_pairs(ranks))
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
    for ids in pack_together(batch.lengths, range(batch.num_sequences), tokens_per_microbatch, batch.prompts):
        part, rows = batch.select(ids), rows_of(trunk_TD, batch.columns(ids))
        score_S[ids] = module(part, trunk(part) if trunk and rows is None else rows)
    return score_S
