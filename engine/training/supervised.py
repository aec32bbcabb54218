"""The training loop that SFT, reward training and DPO share: resume, step, measure, save, stop."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.base.mixture import Mixture
from engine.cli.console import short
from engine.objectives.schedule import learning_rate
from engine.packing import Microbatch, plan_microbatches
from engine.settings import RunSettings
from engine.text.encoding import Example
from engine.training.best import Best
from engine.training.checkpoint import Checkpoints, Saved
from engine.training.context import Context
from engine.training.guards import in_losses, stop
from engine.training.metrics import Metrics
from engine.training.trunk import FrozenWeights, Trunk
from engine.training.zero import ZeroStep, adamw


class SupervisedTrainer(ABC):
    """Optimizer steps over fixed records: a list, or a sequence that reads them from disk when asked (corpus.py).

    A subclass says what a record is (an Example or a RankedExamples), how many loss terms it has, and its loss. The
    gradient of a step is that of the sum of losses divided by the number of terms on all ranks.
    """

    name: str  # of the stage: progress bar, loss/NAME, and the seed's stream
    apart: tuple[str, ...] = ()  # prefixes of the parameters that `apart_rate` is for

    def __init__(
        self,
        module: nn.Module,
        model: nn.Module,
        trunk: Trunk | None,
        frozen: FrozenWeights,
        records: Sequence[Any],
        heldout: Sequence[Any],
        context: Context,
        identity: Mapping[str, str],
    ):
        self.model, self.trunk, self.frozen, self.records, self.heldout = model, trunk, frozen, records, heldout
        self.optimizer, self.batch, self.settings = context.optimizer, context.batch, context.stage
        self.world, self.run, self.console = context.world, context.run, context.console
        weight = next(module.parameters())
        self.zero = ZeroStep(module, adamw(self.optimizer), self.world, context.ds_config, weight.dtype, self.apart)
        run_settings = context.run_settings
        self.mixture = context.mixture or Mixture.of_one(len(records))
        self.steps = self.draw(run_settings)
        identity = {**identity, "steps": len(self.steps)}
        self.checkpoints = Checkpoints(self.zero, self.run, run_settings, self.world, self.console, identity)
        self.best = Best(self.settings, self.checkpoints, self.console)
        self.results: dict[str, Any] = {}

    def train(self) -> dict[str, Any]:
        """Run the steps that are left. Returns the losses and held-out measurements by name, for result.json."""
        saved = self.checkpoints.restore()
        if self.trunk and self.trunk.split and self.passes > 1:
            sequences = [e.tokens for record in self.records for e in self.examples_of(record)]
            self.trunk.keep(sequences, self.run.trunk_file, self.batch, self.world, self.console)
        self.prepare(saved)
        if not saved:
            self._measure(0, before=True)
        bar, total = self.console.bar(len(self.steps), self.name, "step"), len(self.steps)
        with self.checkpoints:
            for step in range(saved.step if saved else 0, total):
                self.keep_loss(self.step(step))
                bar.update(step + 1 - bar.n)
                if self.settings.measures(step + 1, total):
                    self._measure(step + 1)
                self.checkpoints.after_step(step + 1, self._state(), last=step + 1 == total)
            name = "heldout_loss" if self.best.name == "loss" else self.best.name
            self.results |= self.best.settle(total, self.results.get(f"{name}_before"))
            result = self.finish()
            self.world.at(None)
            self.frozen.check()
        bar.close()
        return result

    def step(self, step: int) -> float:
        """Take one optimizer step. Returns its loss."""
        self.world.at(f"step {step + 1}")
        metrics, began, indices = Metrics(), time.monotonic(), self.steps[step]
        records = [self.records[i] for i in indices]
        terms, plan = self.terms_of(records), self._plan(records)
        losses = []
        for k, microbatch in enumerate(plan):
            chosen = [records[i] for i in microbatch.indices]
            loss, counts = self.loss(chosen, [indices[i] for i in microbatch.indices])
            loss = loss * microbatch.weight
            self.zero.backward(loss / terms, last=k == len(plan) - 1)
            metrics.add(f"loss/{self.name}", loss, self.terms_of(chosen) * microbatch.weight)
            losses.append(loss.detach())
            self.world.tick()
            for name, (total, count) in counts.items():
                metrics.add(name, total * microbatch.weight, count * microbatch.weight)
        total, lr = len(self.steps), self.rate(step, self.optimizer.lr)
        self.zero.apart_lr = self.apart_rate(step)
        norm = self.zero.step(lr)
        if self.zero.overflowed:
            return self.step(step)
        if not math.isfinite(norm):
            self._stop(step, losses, [[records[i] for i in microbatch.indices] for microbatch in plan])
        means = metrics.read(self.world)
        tokens = sum(self._lengths(records))
        rate = tokens / (time.monotonic() - began)
        own = {**self.zero.numbers, **self.also_log(records)}
        numbers = {**means, "grad_norm": norm, "lr": lr, **own, "time/tokens_per_s": rate}
        self.run.log(step + 1, numbers)
        if (step + 1) % max(1, total // 20) == 0 or step == 0:
            self.console.row({
                "step": f"{step + 1}/{total}", "loss": short(means[f"loss/{self.name}"]), **self.also_show(means),
                "grad norm": short(norm), "lr": f"{lr:.2e}", "tokens/s": f"{rate:.0f}",
            })  # fmt: skip
        return means[f"loss/{self.name}"]

    @abstractmethod
    def examples_of(self, record: Any) -> Sequence[Example]:
        """The sequences of a record. They share a microbatch."""

    @abstractmethod
    def terms_of(self, records: Sequence[Any]) -> int:
        """How many terms the losses of these records sum."""

    @abstractmethod
    def loss(
        self, records: Sequence[Any], indices: Sequence[int] | None
    ) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
        """(sum of the losses of a pack of records, {metric: (sum, count)}).

        `indices` are the records' indices in the training data, None for other records.
        """

    @abstractmethod
    def measure(self) -> tuple[dict[str, Any], dict[str, float], str]:
        """Measure the held-out records: ({name in result.json: value}, {name in metrics.jsonl: value}, line)."""

    @abstractmethod
    def kept_tensors(self, records: Sequence[Any]) -> dict[str, Tensor]:
        """The tensors that replay a batch of these records."""

    def draw(self, run_settings: RunSettings) -> Sequence[Sequence[int]]:
        """Return the indices of the records of each step of the run."""
        steps = self.mixture.batches(self.batch.batch_size, self.batch.epochs, run_settings.seed, self.name)
        return steps[: run_settings.max_steps]

    def rate(self, step: int, peak: float) -> float:
        """Return the learning rate of a step by the run's schedule."""
        total, optimizer = len(self.steps), self.optimizer
        return learning_rate(step, total, peak, optimizer.schedule, optimizer.warmup(total), optimizer.decay(total))

    def apart_rate(self, step: int) -> float | None:
        """Return the learning rate of the parameters in `apart`; None if it is that of the others."""
        return None

    @property
    def passes(self) -> int:
        """How often the run reads a record's trunk outputs: from two on they are kept."""
        return self.mixture.passes(self.batch.epochs)

    def prepare(self, saved: Saved | None) -> None:
        """Take the results so far from the checkpoint that the run resumes, None at its beginning.

        A subclass takes, or computes, what else its steps need.
        """
        self.results = {name: value for name, value in saved.trainer.items() if name != "kept"} if saved else {}
        self.best.restore(saved.trainer if saved else {})

    def keep_loss(self, loss: float) -> None:
        """Put a step's loss into the results."""
        self.results = {**self.results, "loss_last": loss}

    def finish(self) -> dict[str, Any]:
        """Compute what follows the last step. Returns the run's results."""
        return self.results

    def also_log(self, records: Sequence[Any]) -> dict[str, float]:
        """More numbers of a step over these records, called once when the step was taken."""
        return {}

    def also_show(self, means: Mapping[str, float]) -> dict[str, str]:
        """More columns of the console's line."""
        return {}

    def packs_of(self, records: Sequence[Any]) -> Iterator[tuple[tuple[int, ...], float]]:
        """Yield this rank's microbatches: indices into `records`, and the weight, 0 for a stand-in."""
        for microbatch in self._plan(records):
            yield microbatch.indices, microbatch.weight
            self.world.tick()

    def _measure(self, step: int, before: bool = False) -> None:
        if not self.heldout:
            return
        self.world.at(f"held-out data after step {step}")
        with torch.no_grad():
            results, logged, line = self.measure()
        self.results |= {f"{name}_before" if before else name: value for name, value in results.items()}
        self.run.log(step, logged)
        self.console.say(f"held out, after step {step}: {line}")
        if not before and self.best.name:
            self.best.offer(step, logged[f"eval/{self.best.name}"], results)

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the trainer."""
        return {**self.results, **self.best.state()}

    def _plan(self, records: Sequence[Any]) -> list[Microbatch]:
        """This rank's microbatches."""
        return plan_microbatches(self._lengths(records), self.batch.tokens_per_microbatch, self.world.size)[
            self.world.rank
        ]

    def _lengths(self, records: Sequence[Any]) -> list[int]:
        return [sum(len(e.tokens) for e in self.examples_of(record)) for record in records]

    def _stop(self, step: int, losses: Sequence[Tensor], plan: Sequence[Sequence[Any]]) -> None:
        """End the run at a step that was not taken (guards.py)."""
        mine = list({id(record): record for chosen in plan for record in chosen}.values())  # a stand-in may repeat one
        ids = [e.id for record in mine for e in self.examples_of(record)]
        trouble = in_losses(losses, [[record.id for record in chosen] for chosen in plan])
        stop(self.run, self.checkpoints, step, trouble, ids, self.kept_tensors(mine), self._state())
