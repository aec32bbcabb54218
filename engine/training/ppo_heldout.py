"""PPO on held-out prompts: measure the policy before, while and after it trains, on the same random numbers each time.

Shapes: T tokens, S sequences, A selected action columns, D model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.base.languages import Language
from engine.batch import PackedBatch, action_mask
from engine.generation.sample import Sample
from engine.generation.workspace import Workspace
from engine.packing import pack_together
from engine.settings import BatchSettings, PPOSettings
from engine.text.encoding import Prompt
from engine.training.actor import Actor
from engine.training.best import Best
from engine.training.checkpoint import Checkpoints
from engine.training.heldout import Answers, Estimate, in_words, sample_answers, shown
from engine.training.modules import Reference, Top, Whole
from engine.training.ppo_progress import Progress
from engine.training.weighted_scorers import Scorer
from kernels.linear_logprob import linear_logprob

_IN_LINE = ("score", "exact_match", "kl", "length", "ended")


class HeldOut:
    """Samples and measures answers to held-out prompts under the weights that `model` has at the time.

    It changes nothing that training reads: its random numbers have addresses of their own. With --eval-every it also
    measures the KL to the reference, and keeps the answers of the start, of the newest measured step and of the best.
    All ranks make each call together.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        eos_ids: Sequence[int],
        prompts: Sequence[Prompt],
        scorer: Scorer,
        reference: Reference,
        split: int | None,
        batch: BatchSettings,
        ppo: PPOSettings,
        seed: int,
        language: Language | None,
        checkpoints: Checkpoints,
        workspace: Workspace,
    ):
        self.model, self.tokenizer, self.eos_ids, self.prompts = model, tokenizer, eos_ids, prompts
        self.scorer, self.reference, self.split, self.batch, self.ppo = scorer, reference, split, batch, ppo
        self.seed, self.language, self.checkpoints, self.workspace = seed, language, checkpoints, workspace
        self.body = Whole(model) if split is None else Top(model, split)  # the model's own weights
        self.before: Answers | None = None
        self.at: dict[int, Answers] = {}  # by iteration
        self.best: int | None = None  # the iteration whose answers are kept as the best

    def measure_before(self) -> None:
        """Measure the policy before it trains. Nothing can be saved yet, so a signal ends the process at once."""
        if self.prompts:
            self.before = self.sample(by_signal=False)
            line = in_words(self.before.estimates())
            self.checkpoints.console.say(f"  {len(self.prompts)} held-out prompts before PPO: {line}\n")

    def measure_after(self, at: Progress, state: Callable[[], Mapping[str, Any]], actor: Actor, best: Best) -> None:
        """With --eval-every, measure the policy after its newest iteration, and keep its weights if it is the best.

        A signal meanwhile saves `state()`, in which the iteration is not measured; the resumed run measures it.
        """
        if not (self.ppo.eval_every and self.prompts and at.iteration > at.measured):
            return
        checkpoints = self.checkpoints
        checkpoints.world.at(f"held-out prompts after iteration {at.iteration}")
        checkpoints.at(at.step, state)
        actor.publish(checkpoints.zero)
        actor.gather()
        answers = self.sample()
        actor.release()
        estimates = answers.estimates()
        checkpoints.run.log(at.iteration, logged(estimates))
        checkpoints.console.say(f"held out, after iteration {at.iteration}: {in_a_line(estimates)}")
        is_best = best.name is not None and best.offer(at.iteration, estimates[best.name].mean, {})
        self._keep(at.iteration, answers, is_best)
        at.measured = at.iteration

    def mean_before(self, measure: str | None) -> float | None:
        """Return a measure's mean before training; None without a measure or held-out prompts."""
        return None if measure is None or self.before is None else self.before.estimates()[measure].mean

    def sample(self, by_signal: bool = True) -> Answers:
        """Sample and measure answers; `by_signal`, a signal ends that early and saves the run."""
        world, console = self.checkpoints.world, self.checkpoints.console
        return sample_answers(
            self.model, self.tokenizer, self.eos_ids, self.prompts, self.scorer, self.ppo, self.split, self.seed,
            self.batch.batch_size, world, console, self.checkpoints if by_signal else None,
            self.kl if self.ppo.eval_every else None, self.language, self.workspace,
        )  # fmt: skip

    def _keep(self, iteration: int, answers: Answers, is_best: bool) -> None:
        """Remember the answers of an iteration, and forget those of earlier ones except the best."""
        self.best = iteration if is_best else self.best
        self.at = {i: kept for i, kept in self.at.items() if i == self.best} | {iteration: answers}

    @torch.no_grad()
    def kl(self, prompts: Sequence[Prompt], responses: Sequence[Sample]) -> list[float]:
        """Return for each response the sum over its tokens of log policy - log reference, as objective/kl has it."""
        sequences = [(*p.tokens, *r.tokens) for p, r in zip(prompts, responses)]
        prompt_lens, kls = [len(p.tokens) for p in prompts], [0.0] * len(sequences)
        whole = PackedBatch.from_sequences(sequences, self.model.head_weight.device, prompt_lens)
        budget = self.batch.tokens_per_microbatch
        for ids in pack_together(whole.lengths, range(whole.num_sequences), budget, whole.prompts):
            batch = whole.select(ids)
            trunk_TD = None if self.split is None else torch.cat([responses[i].trunk_ND for i in ids])
            columns_A = action_mask(batch, [prompt_lens[i] for i in ids]).nonzero()[:, 0]
            ratio_A = self._log_ratio(batch, trunk_TD, columns_A).double()
            kl_S = torch.zeros(len(ids), dtype=torch.float64, device=ratio_A.device)
            kl_S.index_add_(0, batch.sequence_T[columns_A], ratio_A)
            for i, kl in zip(ids, kl_S.tolist()):
                kls[i] = kl
        return kls

    def _log_ratio(self, batch: PackedBatch, trunk_TD: Tensor | None, columns_A: Tensor) -> Tensor:
        h_AD, temperature = self.body(batch, trunk_TD, columns_A), self.ppo.temperature
        logprob_A, _, _ = linear_logprob(h_AD, self.model.head_weight, batch.target_T[columns_A], temperature)
        return logprob_A - self.reference(batch, trunk_TD, columns_A, temperature)


def logged(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Return heldout/NAME and heldout/NAME_half, half of the 95 % interval over prompts; one prompt has no interval."""
    numbers = {}
    for name, x in estimates.items():
        numbers[f"heldout/{name}"] = x.mean
        if math.isfinite(x.half):
            numbers[f"heldout/{name}_half"] = x.half
    return numbers


def in_a_line(estimates: Mapping[str, Estimate]) -> str:
    """Format the measures of one policy for the console."""
    names = [name for name in _IN_LINE if name in estimates]
    names += [name for name in estimates if name not in names and name != "right_then_more"]
    return ", ".join(f"{name.replace('_', ' ')} {shown(name, estimates[name])}" for name in names)
