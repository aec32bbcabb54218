"""Reward-model training on true K-wise rankings: K responses, K sequences forwarded once, all pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import accumulate

import torch

from engine.base.seeds import batches
from engine.batch import PackedBatch
from engine.cli.console import Console, short
from engine.distributed.world import World
from engine.objectives.losses import ranking_loss, ranking_pairs
from engine.objectives.schedule import learning_rate
from engine.packing import first_fit_decreasing, plan_microbatches
from engine.run.folder import Run
from engine.settings import BatchSettings, OptimizerSettings, RewardSettings, RunSettings
from engine.text.encoding import RankedExamples
from engine.training.checkpoint import Checkpoints, fingerprint
from engine.training.guards import in_losses, stop
from engine.training.metrics import Metrics
from engine.training.modules import RewardModule
from engine.training.trunk import FrozenWeights, Trunk, rows_of, trunk_parameters
from engine.training.zero import ZeroStep, adamw


class RewardTrainer:
    """Minimises the mean over prompts of each prompt's mean pairwise loss (Ouyang et al. 2022)."""

    def __init__(
        self,
        model: torch.nn.Module,
        score_weight_D: torch.Tensor,
        rankings: Sequence[RankedExamples],
        heldout: Sequence[RankedExamples],
        run_settings: RunSettings,
        optimizer: OptimizerSettings,
        batch: BatchSettings,
        reward: RewardSettings,
        world: World,
        run: Run,
        console: Console,
        ds_config: dict,
    ):
        self.rankings, self.heldout, self.optimizer, self.batch = rankings, heldout, optimizer, batch
        self.reward = reward
        self.model, self.world, self.run, self.console = model, world, run, console
        identity = fingerprint(model, [e.tokens for r in rankings for e in r.examples], [r.ranks for r in rankings])
        split = max(0, model.num_layers - reward.num_top_layers)
        self.trunk = Trunk(model, split)
        self.frozen = FrozenWeights(trunk_parameters(model, split))
        module = RewardModule(model, score_weight_D, split)
        self.zero = ZeroStep(module, adamw(optimizer), world, ds_config, module.score.weight.dtype)
        # Place of each ranking's first response among all of them: what the trunk keeps them by.
        self.first = list(accumulate((len(r.examples) for r in rankings), initial=0))
        self.steps = batches(len(rankings), batch.batch_size, batch.epochs, run_settings.seed, "reward")
        self.steps = self.steps[: run_settings.max_steps]
        identity["steps"] = len(self.steps)
        self.checkpoints = Checkpoints(self.zero, run, run_settings, world, console, identity)

    def train(self) -> dict[str, float]:
        """Run every step that is left; then measure the scores' mean and deviation on the training prompts."""
        saved = self.checkpoints.restore()
        if self.trunk.split and self.batch.epochs > 1:
            responses = [e.tokens for r in self.rankings for e in r.examples]
            self.trunk.keep(responses, self.run.trunk_file, self.batch, self.world, self.console)
        self.results = dict(saved.trainer) if saved else {}
        if not saved:
            self.measure(0, "accuracy_before")
        bar, total = self.console.bar(len(self.steps), "reward", "step"), len(self.steps)
        with self.checkpoints:
            for step in range(saved.step if saved else 0, total):
                self.results["loss_last"] = self.step(step)
                bar.update(step + 1 - bar.n)
                if self.reward.measures(step + 1, total):
                    self.measure(step + 1, "accuracy")
                self.checkpoints.after_step(step + 1, self.results, last=step + 1 == total)
            self.world.at("the scores' mean and deviation")
            mean, std = self.score_moments()
            self.world.at(None)
            self.frozen.check()
        bar.close()
        return {**self.results, "score_mean": mean, "score_std": std}

    def step(self, step: int) -> float:
        """One optimizer step. Returns its loss."""
        self.world.at(f"step {step + 1}")
        metrics, began, ids = Metrics(), time.monotonic(), self.steps[step]
        rankings = [self.rankings[i] for i in ids]
        tokens = [r.num_tokens for r in rankings]
        plan = plan_microbatches(tokens, self.batch.tokens_per_microbatch, self.world.size)[self.world.rank]
        losses = []
        for k, microbatch in enumerate(plan):
            chosen = [rankings[i] for i in microbatch.ids]
            score_S = self._scores(chosen, [self.first[ids[i]] for i in microbatch.ids])
            pairs = [x.to(self.world.device) for x in ranking_pairs([r.ranks for r in chosen])]
            loss = ranking_loss(score_S, *pairs) * microbatch.weight
            self.zero.backward(loss / len(rankings), last=k == len(plan) - 1)
            metrics.add("loss/reward", loss, len(chosen) * microbatch.weight)
            losses.append(loss.detach())
            self.world.tick()
            right = (score_S[pairs[0]] > score_S[pairs[1]]).sum()
            metrics.add("reward/accuracy", right * microbatch.weight, len(pairs[0]) * microbatch.weight)
        total = len(self.steps)
        lr = learning_rate(step, total, self.optimizer.lr, self.optimizer.schedule, self.optimizer.warmup(total))
        norm = self.zero.step(lr)
        if not math.isfinite(norm):
            self._stop(step, losses, [[rankings[i] for i in microbatch.ids] for microbatch in plan])
        means = metrics.read(self.world)
        rate = sum(tokens) / (time.monotonic() - began)
        self.run.log(step + 1, {**means, "grad_norm": norm, "lr": lr, "time/tokens_per_s": rate})
        if (step + 1) % max(1, len(self.steps) // 20) == 0 or step == 0:
            self.console.row({
                "step": f"{step + 1}/{len(self.steps)}", "loss": short(means["loss/reward"]),
                "accuracy": short(means["reward/accuracy"]), "grad norm": short(norm), "lr": f"{lr:.2e}",
                "tokens/s": f"{rate:.0f}",
            })  # fmt: skip
        return means["loss/reward"]

    def _stop(self, step: int, losses: Sequence[torch.Tensor], plan: Sequence[Sequence[RankedExamples]]) -> None:
        """End the run at a step that was not taken: see engine/training/guards.py."""
        mine = list({id(r): r for chosen in plan for r in chosen}.values())  # a stand-in may be there twice
        examples = [e for r in mine for e in r.examples]
        tensors = {
            "tokens_T": torch.tensor([token for e in examples for token in e.tokens]),
            "lengths_S": torch.tensor([len(e.tokens) for e in examples]),
            "ranks_S": torch.tensor([rank for r in mine for rank in r.ranks]),
            "ranking_S": torch.tensor([i for i, r in enumerate(mine) for _ in r.examples]),
        }
        trouble = in_losses(losses, [[r.id for r in chosen] for chosen in plan])
        stop(self.run, self.checkpoints, step, trouble, [e.id for e in examples], tensors, self.results)

    def measure(self, step: int, name: str) -> None:
        """The accuracy on the held-out rankings, if there are any: logged, said, and kept as `name`."""
        if not self.heldout:
            return
        self.world.at(f"held-out data after step {step}")
        self.results[name] = accuracy = self.accuracy()
        self.run.log(step, {"eval/accuracy": accuracy})
        self.console.say(f"held out, after step {step}: {accuracy:.1%} of the pairs ordered rightly")

    def accuracy(self) -> float:
        """Share of the held-out pairs that the scores order rightly; equal scores count as wrong."""
        metrics = Metrics()
        for chosen, score_S, weight in self._scored(self.heldout, None):
            better_P, worse_P, _ = ranking_pairs([r.ranks for r in chosen])
            metrics.add("accuracy", (score_S[better_P] > score_S[worse_P]).sum() * weight, len(better_P) * weight)
        return metrics.read(self.world)["accuracy"]

    def score_moments(self) -> tuple[float, float]:
        """Mean and deviation of the scores of the training responses (of 4,096 rankings at most), to normalise with."""
        metrics = Metrics()
        for _, score_S, weight in self._scored(self.rankings[:4096], self.first):
            score_S = score_S.double()
            metrics.add("mean", score_S.sum() * weight, len(score_S) * weight)
            metrics.add("square", score_S.square().sum() * weight, len(score_S) * weight)
        means = metrics.read(self.world)
        return means["mean"], max(0.0, means["square"] - means["mean"] ** 2) ** 0.5

    @torch.no_grad()
    def _scored(self, rankings: Sequence[RankedExamples], first: Sequence[int] | None):
        """(rankings of a pack, their scores, 1 or 0 for a stand-in) of this rank's share."""
        tokens = [r.num_tokens for r in rankings]
        for microbatch in plan_microbatches(tokens, self.batch.tokens_per_microbatch, self.world.size)[self.world.rank]:
            chosen = [rankings[i] for i in microbatch.ids]
            score_S = self._scores(chosen, first and [first[i] for i in microbatch.ids])
            yield chosen, score_S.cpu(), microbatch.weight
            self.world.tick()

    def _scores(self, rankings: Sequence[RankedExamples], first: Sequence[int] | None) -> torch.Tensor:
        """float32 [S]: the score of every response, in the order of the rankings.

        `first` is the place of each ranking's first response among those that the trunk keeps, None for others.
        """
        sequences = [e.tokens for r in rankings for e in r.examples]
        order = sorted(range(len(sequences)), key=lambda s: len(sequences[s]))  # shortest first
        batch = PackedBatch.from_sequences([sequences[s] for s in order], self.world.device)
        places = first and [f + k for f, r in zip(first, rankings) for k in range(len(r.examples))]
        trunk_TD = self.trunk(batch, places and [places[s] for s in order])
        return self.zero(batch, trunk_TD)[torch.tensor(order, device=self.world.device).argsort()]


@torch.no_grad()
def score_sequences(
    module: RewardModule,
    batch: PackedBatch,
    trunk_TD: torch.Tensor | None,
    tokens_per_microbatch: int,
    trunk: Trunk | None = None,
) -> torch.Tensor:
    """float32 [S]: the scores of a pack of any size, a token budget at a time.

    `trunk_TD` is the output of the layers below the module's; without it `trunk` runs them.
    """
    score_S = torch.empty(batch.num_sequences, device=batch.tokens_T.device)
    for ids in first_fit_decreasing(batch.lengths, tokens_per_microbatch):
        ids = sorted(ids, key=lambda s: batch.lengths[s])
        part, rows = batch.select(ids), rows_of(trunk_TD, batch.columns(ids))
        score_S[ids] = module(part, trunk(part) if trunk and rows is None else rows)
    return score_S
