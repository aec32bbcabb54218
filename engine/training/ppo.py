"""PPO and its relatives on the top layers of a language model: collect, then epochs, minibatches, loss, step.

Shapes: T tokens, A selected action columns, S sequences, D model.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from engine.base.seeds import derive_seed
from engine.batch import PackedBatch, action_mask
from engine.generation.generate import Sample, generate
from engine.objectives.experience import Experience
from engine.objectives.kl_controller import KLController
from engine.objectives.schedule import ppo_rates
from engine.packing import Microbatch, rank_microbatches
from engine.settings import split_of
from engine.text.encoding import Prompt
from engine.text.tokenizer import decode
from engine.training.actor import Actor
from engine.training.checkpoint import Checkpoints, fingerprint
from engine.training.context import Context
from engine.training.guards import stop_ppo
from engine.training.metrics import Metrics
from engine.training.modules import Policy
from engine.training.ppo_columns import (
    final_rewards,
    initial_value_offset,
    old_logprobs_and_values,
    rewards_and_advantages,
)
from engine.training.ppo_loss import divisor_of, ppo_loss
from engine.training.ppo_plan import Plan
from engine.training.ppo_progress import Progress
from engine.training.ppo_report import first_and_last, measure_rollouts, measure_update, report
from engine.training.ppo_scores import Scores
from engine.training.pretraining import Pretraining
from engine.training.scorers import Scorer, start_critic
from engine.training.trunk import FrozenWeights, Trunk, trunk_parameters
from engine.training.zero import ZeroStep, adamw


class PPOTrainer:
    """Proximal policy optimisation (Schulman et al. 2017) as in Ouyang et al. 2022, with the lower layers run once.

    Generation keeps the output of the frozen trunk. The old log-probabilities, the reference, the values and every
    epoch start from it. `model` is trained in place: its top layers are the policy's. RLOO and GRPO have no critic and
    take advantages from several rollouts of a prompt; the rest is the same.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        eos_ids: Sequence[int],
        prompts: Sequence[Prompt],
        scorer: Scorer,
        context: Context,
        text: Pretraining | None = None,
    ):
        self.model, self.tokenizer, self.eos_ids, self.prompts, self.scorer = model, tokenizer, eos_ids, prompts, scorer
        self.optimizer, self.batch, self.ppo = context.optimizer, context.batch, context.stage
        self.world, self.run, self.console, self.seed = (
            context.world, context.run, context.console, context.run_settings.seed
        )  # fmt: skip
        ppo = self.ppo
        self.scores = Scores(ppo, scorer, self.world.sum)
        identity = fingerprint(model, [p.tokens for p in prompts])
        self.split = split_of(ppo.top_layers, model.num_layers)
        self.policy = Policy(model, self.split, ppo.has_critic)
        self.reference = self.policy.reference()
        if ppo.critic == "separate":
            start_critic(self.policy, scorer)
        # A critic that starts as a reward model with its own trunk has that trunk's output as its input.
        self.critic_trunk = scorer.own_trunk if ppo.critic == "separate" and scorer.trunk else None
        trunk = [] if self.split is None else trunk_parameters(model, self.split)
        head = [("head", w) for w in self.policy.frozen_head]
        self.frozen = FrozenWeights([*trunk, *head, *self.reference.named_parameters("reference")])
        self.actor = Actor(model, self.policy, self.split, context)
        apart = ("value.", "critic.") if ppo.critic_warmup or ppo.critic_lr is not None else ()
        self.zero = ZeroStep(
            self.policy, adamw(self.optimizer), self.world, context.ds_config, model.head_weight.dtype, apart
        )
        self.kl = KLController(ppo.kl_coef, ppo.kl_target if ppo.kl_controller == "adaptive" else None, ppo.kl_horizon)
        most = context.run_settings.max_steps
        self.plan = Plan.of(prompts, self.batch, ppo, self.seed, self.world.size, most, context.mixture)
        self.steps = self.plan.steps
        identity["steps"] = len(self.steps)
        self.text, self.trunk = text, None if self.split is None else Trunk(model, self.split)
        if text:
            pieces = [piece for file in text.files for piece in file.pieces]
            identity["text"] = fingerprint(model, pieces)["tokens"]
        self.checkpoints = Checkpoints(self.zero, self.run, context.run_settings, self.world, self.console, identity)
        self.progress = Progress()

    def train(self) -> dict[str, Any]:
        """Run the iterations that are left. Returns the first and last iteration's score and KL, and the warnings."""
        self._restore()
        bar = self.console.bar(len(self.steps), "ppo", "iteration")
        with self.checkpoints:
            for iteration in range(self.progress.iteration, len(self.steps)):
                self.iterate(iteration)
                bar.update(iteration + 1 - bar.n)
            self.world.at(None)
            self.actor.gather()
            self.frozen.check()
            self.actor.publish(self.zero)
        bar.close()
        return {**first_and_last(self.progress.history), "warnings": self.progress.watch.warned}

    def iterate(self, iteration: int) -> dict[str, float]:
        """Collect rollouts once, then update in every epoch and minibatch. Returns what was logged.

        An iteration that was interrupted continues with its rollouts, at its next minibatch.
        """
        at, began = self.progress, time.monotonic()
        total = len(self.steps)
        lr, self.zero.apart_lr = ppo_rates(iteration, total, self.optimizer, self.ppo.critic_lr, self.ppo.critic_warmup)
        self.policy.critic_alone = iteration < self.ppo.critic_warmup
        if at.experience is None:
            at.collected(self.collect(iteration, at.metrics), time.monotonic() - began)
        updates = [chosen for epoch in range(self.ppo.ppo_epochs) for chosen in self.plan.minibatches(iteration, epoch)]
        for chosen in updates[at.updates :]:
            began = time.monotonic()
            self.world.at(f"iteration {iteration + 1}, update {at.updates + 1}")
            self.update(at.experience, chosen, lr, at.metrics)
            at.updated(time.monotonic() - began)
            if at.updates < len(updates):
                self.checkpoints.after_step(at.step, self._state, at.experience)
        logged = report(
            iteration, total, at, (lr, self.zero.apart_lr), self.kl.coef, self.world, self.run, self.console
        )
        if not self.policy.critic_alone:
            self.kl.update(logged["objective/kl"], len(self.steps[iteration]))
        at.finished(iteration, logged)
        self.checkpoints.after_step(at.step, self._state, last=iteration + 1 == total)
        return logged

    def collect(self, iteration: int, metrics: Metrics) -> Experience:
        """Generate the responses to this rank's prompts, score them, and compute rewards and advantages.

        In iteration 0 it also sets what is made of the first scores: the critic's value_offset, the normalisation.
        """
        self.world.at(f"iteration {iteration + 1}, rollouts")
        self.actor.publish(self.zero)
        self.files_before = self.run.position()["files"]
        indices = self.plan.share(iteration, self.world.rank, self.world.size)  # in the iteration
        prompts = [self.prompts[self.steps[iteration][i]] for i in indices]
        began = time.monotonic()
        self.actor.gather()
        with self.checkpoints.abort_on_signal(self.progress.step, self._state):
            responses = self._generate(iteration, indices)
        self.actor.release()
        generated = time.monotonic()
        self.world.at(f"iteration {iteration + 1}, scoring")
        metrics.add("time/generation_s", generated - began)
        batch = PackedBatch.from_sequences(
            [(*p.tokens, *r.tokens) for p, r in zip(prompts, responses)], self.world.device
        )
        action_T = action_mask(batch, [len(p.tokens) for p in prompts])
        trunk_TD = self.actor.keep([r.trunk_ND for r in responses])
        critic_trunk_TD = self.actor.keep([self.critic_trunk and self.critic_trunk(batch)])
        texts = [decode(self.tokenizer, r.text_tokens) for r in responses]
        scorer_trunk_TD = trunk_TD if self.scorer.trunk is None else critic_trunk_TD
        raw_S = self.scorer(batch, scorer_trunk_TD, [p.text for p in prompts], texts)
        score_S = self.scores(raw_S, metrics)
        logprob_T, value_T, ref_logprob_T = old_logprobs_and_values(
            self.zero, self.reference, batch, trunk_TD, critic_trunk_TD, action_T,
            self._microbatches(batch, range(batch.num_sequences)), self.ppo.temperature,
        )  # fmt: skip
        metrics.add("time/scoring_s", time.monotonic() - generated)

        self.world.at(f"iteration {iteration + 1}, advantages")
        ended_S = torch.tensor([r.ended for r in responses], device=self.world.device)
        final_S = final_rewards(self.ppo, score_S, ended_S)
        if iteration == 0 and value_T is not None:
            offset = initial_value_offset(value_T, action_T, final_S, self.world.sum)
            self.policy.value_offset += offset
            value_T = torch.where(action_T, value_T + offset, 0.0)
        kl_coef = self.kl.coef if self.ppo.kl_in == "reward" else 0.0
        kl_T, reward_T, advantage_T, return_T = rewards_and_advantages(
            self.ppo, kl_coef, batch, action_T, (logprob_T, value_T, ref_logprob_T), final_S, self.world.sum
        )
        experience = Experience(
            batch, torch.tensor(indices, device=self.world.device), action_T, trunk_TD, logprob_T, ref_logprob_T,
            value_T, reward_T, advantage_T, return_T, score_S, critic_trunk_TD,
        )  # fmt: skip
        rollout_logprob_A = torch.tensor([x for r in responses for x in r.logprobs], device=self.world.device)
        measure_rollouts(metrics, experience, self.ppo, kl_T, kl_coef, ended_S, rollout_logprob_A, self.world.size)
        shown = zip(prompts[:4], texts, score_S[:4].tolist())
        self.run.sample(iteration + 1, [{"prompt": p.text, "response": t, "score": s} for p, t, s in shown])
        return experience

    def update(self, experience: Experience, chosen: Sequence[int], lr: float, metrics: Metrics) -> None:
        """Take one optimizer step on the chosen rollouts of the iteration, on the ranks that made them."""
        wanted_S = torch.isin(experience.rollout_S, torch.tensor(list(chosen), device=self.world.device))
        actions = self.world.sum((experience.action_T & wanted_S[experience.batch.sequence_T]).sum())
        divisor, policy_coef = divisor_of(self.ppo, actions, len(chosen)), float(not self.policy.critic_alone)
        mine, losses, before = wanted_S.nonzero()[:, 0].tolist(), [], metrics.copy()
        of_text = self._learn_text(metrics) if policy_coef else []
        plan = self._microbatches(experience.batch, mine)
        for k, microbatch in enumerate(plan):
            part = experience.select(microbatch.indices)
            terms = ppo_loss(self.zero, part, self.ppo, self.kl.coef, policy_coef)
            loss = terms.loss * microbatch.weight / divisor
            self.zero.backward(loss, last=k == len(plan) - 1)
            losses.append(loss.detach())
            self.world.tick()
            measure_update(metrics, terms, microbatch.weight)
        norm = self.zero.step(lr)
        if not math.isfinite(norm):
            self.progress.metrics = before
            step = self.steps[self.progress.iteration]
            names = [self.prompts[step[i]].id for i in experience.rollout_S.tolist()]
            stop_ppo(
                self.run, self.checkpoints, self.progress, self.policy, self.kl.coef, self._state, experience, names,
                mine, plan, losses, self.files_before, of_text,
            )  # fmt: skip
        metrics.add("grad_norm", norm / self.world.size, 1 / self.world.size)

    def _learn_text(self, metrics: Metrics) -> list[torch.Tensor]:
        """Add the gradient of the pretraining text of this update. Returns its losses."""
        if self.text is None:
            return []
        self.actor.gather()
        losses = self.text.backward(
            self.zero, self.trunk, self.progress.step, self.world, self.batch.tokens_per_microbatch, metrics
        )
        self.actor.release()
        return losses

    def _generate(self, iteration: int, indices: Sequence[int]) -> list[Sample]:
        requests = self.plan.requests(iteration, indices)
        with self.console.bar(len(requests), f"rollout {iteration + 1}", "response") as bar:

            def progress(finished: int, _: int) -> None:
                self.checkpoints.raise_if_signalled()
                self.world.tick()
                bar.update(finished - bar.n)

            return generate(
                self.model, requests, self.ppo.sampling, derive_seed(self.seed, "rollout"), self.eos_ids,
                self.ppo.slots, self.split, progress,
            )  # fmt: skip

    def _microbatches(self, batch: PackedBatch, sequences: Sequence[int]) -> list[Microbatch]:
        return rank_microbatches(batch.lengths, sequences, self.batch.tokens_per_microbatch, self.world.max)

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides weights, optimizer and rollouts."""
        metrics = self.world.gather(self.progress.metrics.state())
        own = {"kl_coef": self.kl.coef, "metrics": metrics}
        own |= {"value_offset": self.policy.value_offset} if self.ppo.has_critic else {}
        own |= {"score_norm": self.scores.norm} if self.scores.normalises else {}
        return {**own, **self.progress.numbers()}

    def _restore(self) -> None:
        share = partial(self.plan.share, ranks=self.world.size)
        if (saved := self.checkpoints.restore(lambda rank, state: share(state["iteration"], rank))) is None:
            return
        own, x = saved.trainer, saved.experience
        self.kl.coef, self.policy.value_offset = own["kl_coef"], own.get("value_offset", 0.0)
        self.scores.norm = own.get("score_norm")
        if x is not None:
            self.files_before = self.run.position()["files"]
            kept = {name: self.actor.keep([getattr(x, name)]) for name in ("trunk_TD", "critic_trunk_TD")}
            x = dataclasses.replace(x, **kept)
            self.actor.release()
        self.progress = Progress.of_numbers(own, x, Metrics.of_states(own["metrics"], self.world))
