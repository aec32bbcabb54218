"""PPO on the top layers of a language model: collect, then epochs, minibatches, microbatches, loss, step.

Shapes: T tokens, A selected action columns, S sequences, D model.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from engine.base.seeds import batches, derive_seed, even_parts, shuffled
from engine.batch import PackedBatch, action_mask
from engine.generation.generate import Request, Sample, generate
from engine.objectives.experience import Experience
from engine.objectives.kl_controller import KLController
from engine.objectives.schedule import learning_rate
from engine.packing import Microbatch, rank_microbatches, shard_of
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
from engine.training.ppo_loss import ppo_loss
from engine.training.ppo_progress import Progress
from engine.training.ppo_report import first_and_last, measure_rollouts, measure_update, report
from engine.training.scorers import Scorer, start_critic, use_scores
from engine.training.trunk import FrozenWeights, trunk_parameters
from engine.training.zero import ZeroStep, adamw


class PPOTrainer:
    """Proximal policy optimisation (Schulman et al. 2017) as in Ouyang et al. 2022, with the lower layers run once.

    Generation keeps the output of the frozen trunk. The old log-probabilities, the reference, the values and every
    epoch start from it. `model` is trained in place: its top layers are the policy's.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        eos_ids: Sequence[int],
        prompts: Sequence[Prompt],
        scorer: Scorer,
        context: Context,
    ):
        self.model, self.tokenizer, self.eos_ids, self.prompts, self.scorer = model, tokenizer, eos_ids, prompts, scorer
        self.optimizer, self.batch, self.ppo = context.optimizer, context.batch, context.stage
        self.world, self.run, self.console, self.seed = (
            context.world, context.run, context.console, context.run_settings.seed
        )  # fmt: skip
        ppo = self.ppo
        self.score_clip = scorer.clip(ppo.score_clip)
        identity = fingerprint(model, [p.tokens for p in prompts])
        self.split = split_of(ppo.top_layers, model.num_layers)
        self.policy = Policy(model, self.split)
        self.reference = self.policy.reference()
        if ppo.critic == "separate":
            start_critic(self.policy, scorer)
        # A critic that starts as a reward model with its own trunk has that trunk's output as its input.
        self.critic_trunk = scorer.own_trunk if ppo.critic == "separate" and scorer.trunk else None
        trunk = [] if self.split is None else trunk_parameters(model, self.split)
        head = [("head", w) for w in self.policy.frozen_head]
        self.frozen = FrozenWeights([*trunk, *head, *self.reference.named_parameters("reference")])
        self.actor = Actor(model, self.policy, self.split, context)
        self.zero = ZeroStep(self.policy, adamw(self.optimizer), self.world, context.ds_config, model.head_weight.dtype)
        self.kl = KLController(ppo.kl_coef, ppo.kl_target if ppo.kl_controller == "adaptive" else None, ppo.kl_horizon)
        # At least two rollouts an iteration, since whitening one alone removes the sign of its score; one per rank.
        fewest = max(2, self.world.size)
        steps = batches(len(prompts), self.batch.batch_size, self.batch.epochs, self.seed, "prompts", fewest=fewest)
        self.per_epoch = len(steps) // self.batch.epochs
        self.steps = steps[: context.run_settings.max_steps]
        identity["steps"] = len(self.steps)
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
        lr = learning_rate(iteration, total, self.optimizer.lr, self.optimizer.schedule, self.optimizer.warmup(total))
        if at.experience is None:
            at.collected(self.collect(iteration, at.metrics), time.monotonic() - began)
        updates = [chosen for epoch in range(self.ppo.ppo_epochs) for chosen in self.minibatches(iteration, epoch)]
        for chosen in updates[at.updates :]:
            began = time.monotonic()
            self.world.at(f"iteration {iteration + 1}, update {at.updates + 1}")
            self.update(at.experience, chosen, lr, at.metrics)
            at.updated(time.monotonic() - began)
            if at.updates < len(updates):
                self.checkpoints.after_step(at.step, self._state, at.experience)
        logged = report(iteration, total, at, lr, self.kl.coef, self.world, self.run, self.console)
        self.kl.update(logged["objective/kl"], len(self.steps[iteration]))
        at.finished(iteration, logged)
        self.checkpoints.after_step(at.step, self._state, last=iteration + 1 == total)
        return logged

    def collect(self, iteration: int, metrics: Metrics) -> Experience:
        """Generate one response to each prompt of this rank, score it, and compute rewards and advantages.

        In iteration 0 it also sets the policy's value_offset.
        """
        self.world.at(f"iteration {iteration + 1}, rollouts")
        self.actor.publish(self.zero)
        self.files_before = self.run.position()["files"]
        indices = self._share(iteration, self.world.rank)  # in the iteration, whose indices are in the data set
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
        score_S, clipped = use_scores(raw_S, self.score_clip)
        if self.score_clip is not None:
            metrics.add("rollout/score_clipped", clipped, len(responses))
        logprob_T, value_T, ref_logprob_T = old_logprobs_and_values(
            self.zero, self.reference, batch, trunk_TD, critic_trunk_TD, action_T,
            self._plan(batch, range(batch.num_sequences)), self.ppo.temperature,
        )  # fmt: skip
        metrics.add("time/scoring_s", time.monotonic() - generated)

        self.world.at(f"iteration {iteration + 1}, advantages")
        ended_S = torch.tensor([r.ended for r in responses], device=self.world.device)
        final_S = final_rewards(self.ppo, score_S, ended_S)
        if iteration == 0:
            offset = initial_value_offset(value_T, action_T, final_S, self.world.sum)
            self.policy.value_offset += offset
            value_T = torch.where(action_T, value_T + offset, 0.0)
        kl_T, reward_T, advantage_T, return_T = rewards_and_advantages(
            self.ppo, self.kl.coef, batch, action_T, (logprob_T, value_T, ref_logprob_T), final_S, self.world.sum
        )
        experience = Experience(
            batch, torch.tensor(indices, device=self.world.device), action_T, trunk_TD, logprob_T, ref_logprob_T,
            value_T, reward_T, advantage_T, return_T, score_S, critic_trunk_TD,
        )  # fmt: skip
        rollout_logprob_A = torch.tensor([x for r in responses for x in r.logprobs], device=self.world.device)
        measure_rollouts(metrics, experience, kl_T, self.kl.coef, ended_S, rollout_logprob_A, self.world.size)
        shown = zip(prompts[:4], texts, score_S[:4].tolist())
        self.run.sample(iteration + 1, [{"prompt": p.text, "response": t, "score": s} for p, t, s in shown])
        return experience

    def minibatches(self, iteration: int, epoch: int) -> list[list[int]]:
        """Return the iteration's rollouts of all ranks, shuffled and cut into optimizer steps."""
        order = shuffled(len(self.steps[iteration]), self.seed, "minibatches", iteration, epoch)
        return even_parts(order, self.ppo.minibatch_size)

    def update(self, experience: Experience, chosen: Sequence[int], lr: float, metrics: Metrics) -> None:
        """Take one optimizer step on the chosen rollouts of the iteration, on the ranks that made them."""
        wanted_S = torch.isin(experience.rollout_S, torch.tensor(list(chosen), device=self.world.device))
        actions = self.world.sum((experience.action_T & wanted_S[experience.batch.sequence_T]).sum())
        mine, losses, before = wanted_S.nonzero()[:, 0].tolist(), [], metrics.copy()
        plan = self._plan(experience.batch, mine)
        for k, microbatch in enumerate(plan):
            terms = ppo_loss(self.zero, experience.select(microbatch.indices), self.ppo)
            loss = terms.loss * microbatch.weight / actions
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
                self.run, self.checkpoints, self.progress, self.policy, self._state, experience, names, mine, plan,
                losses, self.files_before,
            )  # fmt: skip
        metrics.add("grad_norm", norm / self.world.size, 1 / self.world.size)

    def _generate(self, iteration: int, indices: Sequence[int]) -> list[Sample]:
        step, epoch = self.steps[iteration], iteration // self.per_epoch
        requests = [Request(self.prompts[step[i]].tokens, step[i], epoch, self.ppo.max_new_tokens) for i in indices]
        with self.console.bar(len(requests), f"rollout {iteration + 1}", "response") as bar:

            def progress(finished: int, _: int) -> None:
                self.checkpoints.raise_if_signalled()
                self.world.tick()
                bar.update(finished - bar.n)

            return generate(
                self.model, requests, self.ppo.sampling, derive_seed(self.seed, "rollout"), self.eos_ids,
                self.ppo.slots, self.split, progress,
            )  # fmt: skip

    def _share(self, iteration: int, rank: int) -> list[int]:
        """Return the rollouts of an iteration that a rank makes, as indices into it."""
        return shard_of([len(self.prompts[i].tokens) for i in self.steps[iteration]], rank, self.world.size)

    def _plan(self, batch: PackedBatch, sequences: Sequence[int]) -> list[Microbatch]:
        return rank_microbatches(batch.lengths, sequences, self.batch.tokens_per_microbatch, self.world.max)

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides weights, optimizer and rollouts."""
        metrics = self.world.gather(self.progress.metrics.state())
        own = {"kl_coef": self.kl.coef, "value_offset": self.policy.value_offset, "metrics": metrics}
        return {**own, **self.progress.numbers()}

    def _restore(self) -> None:
        if (saved := self.checkpoints.restore(lambda rank, state: self._share(state["iteration"], rank))) is None:
            return
        self.kl.coef, x = saved.trainer["kl_coef"], saved.experience
        self.policy.value_offset = saved.trainer["value_offset"]
        if x is not None:
            self.files_before = self.run.position()["files"]
            kept = {name: self.actor.keep([getattr(x, name)]) for name in ("trunk_TD", "critic_trunk_TD")}
            x = dataclasses.replace(x, **kept)
            self.actor.release()
        self.progress = Progress.of_numbers(saved.trainer, x, Metrics.of_states(saved.trainer["metrics"], self.world))
