"""Supervised fine-tuning on packed sequences."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from engine.base.seeds import batches
from engine.batch import PackedBatch, action_mask
from engine.cli.console import Console, short
from engine.distributed.world import World
from engine.objectives.schedule import learning_rate
from engine.packing import plan_microbatches
from engine.run.folder import Run
from engine.settings import BatchSettings, OptimizerSettings, RunSettings, SFTSettings, split_of
from engine.text.encoding import Example
from engine.training.checkpoint import Checkpoints, fingerprint
from engine.training.guards import in_losses, stop
from engine.training.metrics import Metrics
from engine.training.modules import LanguageModule
from engine.training.trunk import FrozenWeights, Trunk, trunk_parameters
from engine.training.zero import ZeroStep, adamw


class SFTTrainer:
    """Minimises the sum of -log p over the chosen tokens, divided by their number in the step (all ranks)."""

    def __init__(
        self,
        model: torch.nn.Module,
        examples: Sequence[Example],
        heldout: Sequence[Example],
        run_settings: RunSettings,
        optimizer: OptimizerSettings,
        batch: BatchSettings,
        sft: SFTSettings,
        world: World,
        run: Run,
        console: Console,
        ds_config: dict,
    ):
        self.examples, self.heldout, self.optimizer, self.batch, self.sft = examples, heldout, optimizer, batch, sft
        self.model, self.world, self.run, self.console = model, world, run, console
        self.on_all = sft.loss_on == "all"
        identity = fingerprint(model, [e.tokens for e in examples])
        split = split_of(sft.top_layers, model.num_layers)
        self.trunk = None if split is None else Trunk(model, split)
        self.frozen = FrozenWeights(
            [] if split is None else [*trunk_parameters(model, split), ("head", model.head_weight)]
        )
        module = LanguageModule(model, split)
        self.zero = ZeroStep(module, adamw(optimizer), world, ds_config, next(model.parameters()).dtype)
        self.steps = batches(len(examples), batch.batch_size, batch.epochs, run_settings.seed, "sft")
        self.steps = self.steps[: run_settings.max_steps]
        identity["steps"] = len(self.steps)
        self.checkpoints = Checkpoints(self.zero, run, run_settings, world, console, identity)

    def train(self) -> dict[str, float]:
        """Run every step that is left. Returns the first and the last step's loss, and of the held-out data if any."""
        saved = self.checkpoints.restore()
        if self.trunk and self.batch.epochs > 1:
            sequences = [e.tokens for e in self.examples]
            self.trunk.keep(sequences, self.run.trunk_file, self.batch, self.world, self.console)
        self.results = dict(saved.trainer) if saved else {}
        if not saved:
            self.measure(0, "heldout_loss_before")
        bar, total = self.console.bar(len(self.steps), "sft", "step"), len(self.steps)
        with self.checkpoints:
            for step in range(saved.step if saved else 0, total):
                loss = self.step(step)
                self.results = {"loss_first": loss, **self.results, "loss_last": loss}
                bar.update(step + 1 - bar.n)
                if self.sft.measures(step + 1, total):
                    self.measure(step + 1, "heldout_loss")
                self.checkpoints.after_step(step + 1, self.results, last=step + 1 == total)
            self.world.at(None)
            self.frozen.check()
        bar.close()
        return self.results

    def step(self, step: int) -> float:
        """One optimizer step. Returns its loss."""
        self.world.at(f"step {step + 1}")
        metrics, began, ids = Metrics(), time.monotonic(), self.steps[step]
        examples = [self.examples[i] for i in ids]
        actions = self._actions(examples)
        tokens = [len(e.tokens) for e in examples]
        plan = plan_microbatches(tokens, self.batch.tokens_per_microbatch, self.world.size)[self.world.rank]
        losses = []
        for k, microbatch in enumerate(plan):
            chosen = [examples[i] for i in microbatch.ids]
            loss = self._loss(chosen, [ids[i] for i in microbatch.ids]) * microbatch.weight
            self.zero.backward(loss / actions, last=k == len(plan) - 1)
            metrics.add("loss/sft", loss, self._actions(chosen) * microbatch.weight)
            losses.append(loss.detach())
            self.world.tick()
        total = len(self.steps)
        lr = learning_rate(step, total, self.optimizer.lr, self.optimizer.schedule, self.optimizer.warmup(total))
        norm = self.zero.step(lr)
        if not math.isfinite(norm):
            self._stop(step, losses, [[examples[i] for i in microbatch.ids] for microbatch in plan])
        means = metrics.read(self.world)
        rate = sum(tokens) / (time.monotonic() - began)
        self.run.log(step + 1, {**means, "grad_norm": norm, "lr": lr, "tokens": sum(tokens), "time/tokens_per_s": rate})
        if (step + 1) % max(1, len(self.steps) // 20) == 0 or step == 0:
            self.console.row({
                "step": f"{step + 1}/{len(self.steps)}", "loss": short(means["loss/sft"]), "grad norm": short(norm),
                "lr": f"{lr:.2e}", "tokens/s": f"{rate:.0f}",
            })  # fmt: skip
        return means["loss/sft"]

    @torch.no_grad()
    def measure(self, step: int, name: str) -> None:
        """The mean loss a token of the held-out examples, if there are any: logged, said, and kept as `name`."""
        if not self.heldout:
            return
        self.world.at(f"held-out data after step {step}")
        metrics, tokens = Metrics(), [len(e.tokens) for e in self.heldout]
        for microbatch in plan_microbatches(tokens, self.batch.tokens_per_microbatch, self.world.size)[self.world.rank]:
            chosen = [self.heldout[i] for i in microbatch.ids]
            loss = self._loss(chosen, None) * microbatch.weight
            metrics.add("eval/loss", loss, self._actions(chosen) * microbatch.weight)
            self.world.tick()
        means = metrics.read(self.world)
        self.results[name] = means["eval/loss"]
        self.run.log(step, means)
        self.console.say(f"held out, after step {step}: loss {short(means['eval/loss'])}")

    def _loss(self, examples: Sequence[Example], ids: Sequence[int] | None) -> torch.Tensor:
        """Sum of -log p over the chosen tokens of a pack; `ids` are its places among the training examples."""
        packed = PackedBatch.from_sequences([e.tokens for e in examples])
        columns_A = action_mask(packed, [self._prompt_len(e) for e in examples]).nonzero()[:, 0]
        packed, columns_A = packed.to(self.world.device), columns_A.to(self.world.device)
        trunk_TD = self.trunk and self.trunk(packed, ids)
        return -self.zero(packed, trunk_TD, columns_A).sum()

    def _actions(self, examples: Sequence[Example]) -> int:
        return sum(len(e.tokens) - self._prompt_len(e) for e in examples)

    def _stop(self, step: int, losses: Sequence[torch.Tensor], plan: Sequence[Sequence[Example]]) -> None:
        """End the run at a step that was not taken: see engine/training/guards.py."""
        mine = list({id(e): e for chosen in plan for e in chosen}.values())  # a stand-in may be there twice
        tensors = {
            "tokens_T": torch.tensor([token for e in mine for token in e.tokens]),
            "lengths_S": torch.tensor([len(e.tokens) for e in mine]),
            "prompt_len_S": torch.tensor([self._prompt_len(e) for e in mine]),
        }
        trouble = in_losses(losses, [[e.id for e in chosen] for chosen in plan])
        stop(self.run, self.checkpoints, step, trouble, [e.id for e in mine], tensors, self.results)

    def _prompt_len(self, example: Example) -> int:
        # The first token of a sequence follows nothing, so it is never learned.
        return 1 if self.on_all else max(1, example.prompt_len)
