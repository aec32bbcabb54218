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

from engine.base.languages import get_language
from engine.base.seeds import derive_seed
from engine.batch import PackedBatch, action_mask, on_device
from engine.device import wait
from engine.generation.generate import Sample, generate
from engine.objectives.experience import Experience
from engine.objectives.kl_controller import KLController
from engine.objectives.schedule import ppo_rates
from engine.packing import Microbatch, rank_microbatches
from engine.settings import split_of
from engine.text.encoding import Prompt
from engine.text.tokenizer import decode
from engine.training.actor import Actor
from engine.training.best import Best
from engine.training.checkpoint import Checkpoints, fingerprint
from engine.training.context import Context
from engine.training.guards import stop_ppo
from engine.training.heldout import Answers
from engine.training.metrics import Metrics
from engine.training.modules import Policy
from engine.training.ppo_columns import (
    final_rewards,
    initial_value_offset,
    old_logprobs_and_values,
    rewards_and_advantages,
)
from engine.training.ppo_heldout import HeldOut, logged
from engine.training.ppo_loss import divisor_of, half_square, ppo_loss
from engine.training.ppo_plan import Plan
from engine.training.ppo_progress import Progress
from engine.training.ppo_report import (
    first_and_last,
    measure_rollouts,
    measure_update,
    report,
    stopped_by_kl,
)
from engine.training.ppo_scores import Scores
from engine.training.pretraining import Pretraining
from engine.training.trunk import FrozenWeights, Trunk, frozen_parameters
from engine.training.weighted_scorers import Scorer, start_critic
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
        heldout: Sequence[Prompt] = (),
        text: Pretraining | None = None,
    ):
        self.model, self.tokenizer, self.eos_ids, self.prompts, self.scorer = model, tokenizer, eos_ids, prompts, scorer
        self.optimizer, self.batch, self.ppo = context.optimizer, context.batch, context.stage
        self.world, self.run, self.console = context.world, context.run, context.console
        self.seed = context.run_settings.seed
        ppo = self.ppo
        self.scores = Scores(ppo, scorer, self.world.sum)
        self.moved: torch.Tensor | None = None  # with --target-kl: KL of the newest minibatch to the sampling policy
        identity = fingerprint(model, [p.tokens for p in prompts])
        self.split = split_of(ppo.top_layers, model.num_layers)
        self.policy = Policy(model, self.split, ppo.has_critic, self.batch.recompute)
        self.reference = self.policy.reference()
        if ppo.critic == "separate":
            start_critic(self.policy, scorer)
        # A critic that starts as a reward model with its own trunk has that trunk's output as its input.
        self.critic_trunk = scorer.own_trunk if ppo.critic == "separate" and scorer.trunk else None
        frozen = frozen_parameters(model, self.split)
        self.frozen = FrozenWeights([*frozen, *self.reference.named_parameters("reference")])
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
        self.best = Best(ppo, self.checkpoints, self.console)
        self.heldout = HeldOut(
            model, tokenizer, eos_ids, heldout, scorer, self.reference, self.split, self.batch, ppo, self.seed,
            get_language(context.run_settings.lang), self.checkpoints, self.actor.workspace,
        )  # fmt: skip

    def train(self) -> dict[str, Any]:
        """Run the iterations that are left. Returns the first and last iteration's score and KL, and the warnings.

        With --stop-kl also why it ended early, with --keep-best which iteration's weights the model has now.
        """
        self.heldout.measure_before()
        is_resumed = self._restore()
        if not is_resumed and self.ppo.eval_every and self.heldout.prompts:
            self.run.log(0, logged(self.heldout.before.estimates()))
        bar = self.console.bar(len(self.steps), "ppo", "iteration")
        with self.checkpoints:
            self._measure()  # what a signal has cut short
            while not self.is_done:
                self.iterate(self.progress.iteration)
                bar.update(self.progress.iteration - bar.n)
            self.world.at(None)
            kept = self.best.settle(self.progress.iteration, self.heldout.mean_before(self.best.name), "iteration")
            self.actor.gather()
            self.frozen.check()
            self.actor.publish(self.zero)
        bar.close()
        result = {**first_and_last(self.progress.history), "warnings": self.progress.watch.warned, **kept}
        if stopped := stopped_by_kl(self.ppo, self.progress, len(self.steps)):
            self.console.say(stopped)
            result["stopped"] = stopped
        return result

    @property
    def is_done(self) -> bool:
        """Whether no iteration is left, or --stop-kl ends the run."""
        total = len(self.steps)
        return self.progress.iteration == total or stopped_by_kl(self.ppo, self.progress, total) is not None

    def answers_after(self) -> Answers:
        """Return the answers to held-out prompts under the weights that are exported; sample them if not kept."""
        return self.heldout.at.get(self.exported) or self.heldout.sample()

    @property
    def exported(self) -> int:
        """The number of iterations after which the exported weights were reached."""
        return self.best.kept["step"] if self.best.kept else self.progress.iteration

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
            is_taken = self.update(at.experience, chosen, lr, at.metrics)
            if not is_taken:
                at.update_s += time.monotonic() - began
                break
            at.updated(time.monotonic() - began)
            if at.updates < len(updates):
                self.checkpoints.after_step(at.step, self._state, at.experience)
        moved = {} if self.moved is None else {"policy/updates": at.updates, "policy/last_kl": float(self.moved)}
        numbers = report(
            iteration, total, at, (lr, self.zero.apart_lr), self.kl.coef, self.world, self.run, self.console,
            moved | self.zero.numbers, len(updates),
        )  # fmt: skip
        if not self.policy.critic_alone:
            self.kl.update(numbers["objective/kl"], len(self.steps[iteration]))
        at.finished(iteration, numbers)
        self._measure()
        self.checkpoints.after_step(at.step, self._state, last=self.is_done)
        return numbers

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
            [(*p.tokens, *r.tokens) for p, r in zip(prompts, responses)], self.world.device,
            [len(p.tokens) for p in prompts],
        )  # fmt: skip
        action_T = action_mask(batch, [len(p.tokens) for p in prompts])
        trunk_TD = self.actor.keep([r.trunk_ND for r in responses])
        critic_trunk_TD = self.actor.keep([self.critic_trunk and self.critic_trunk(batch)])
        texts = [decode(self.tokenizer, r.text_tokens) for r in responses]
        prompt_texts, outputs = [p.text for p in prompts], [p.output for p in prompts]
        raw = self.scorer(batch, trunk_TD, prompt_texts, texts, outputs, critic_trunk_TD)
        score_S = self.scores(raw, metrics)
        logprob_T, value_T, ref_logprob_T = old_logprobs_and_values(
            self.zero, self.reference, batch, trunk_TD, critic_trunk_TD, action_T,
            self._microbatches(batch, range(batch.num_sequences)), self.ppo.temperature,
        )  # fmt: skip
        wait(self.world.device)
        metrics.add("time/scoring_s", time.monotonic() - generated)

        self.world.at(f"iteration {iteration + 1}, advantages")
        ended_S = on_device([r.ended for r in responses], torch.bool, self.world.device)
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
            batch, on_device(indices, torch.int64, self.world.device), action_T, trunk_TD, logprob_T, ref_logprob_T,
            value_T, reward_T, advantage_T, return_T, score_S, critic_trunk_TD,
        )  # fmt: skip
        rollout_logprob_A = on_device([x for r in responses for x in r.logprobs], torch.float32, self.world.device)
        measure_rollouts(metrics, experience, self.ppo, kl_T, kl_coef, ended_S, rollout_logprob_A, self.world.size)
        shown = zip(prompts[:4], texts, score_S[:4].tolist())
        self.run.sample(iteration + 1, [{"prompt": p.text, "response": t, "score": s} for p, t, s in shown])
        return experience

    def update(self, experience: Experience, chosen: Sequence[int], lr: float, metrics: Metrics) -> bool:
        """Take one optimizer step on the chosen rollouts of the iteration, on the ranks that made them.

        Returns whether it was taken: --target-kl vetoes it, but never the first of an iteration. Its own forwards show
        how far the policy has moved, so the veto comes with the last backward; it costs a sum over ranks, and the host
        reads it after the gradient norm, which it waits for anyway.
        """
        wanted = set(chosen)
        mine = [s for s, rollout in enumerate(experience.rollouts) if rollout in wanted]
        wanted_S = on_device([rollout in wanted for rollout in experience.rollouts], torch.bool, self.world.device)
        actions = self.world.sum((experience.action_T & wanted_S[experience.batch.sequence_T]).sum())
        divisor, policy_coef = divisor_of(self.ppo, actions, len(chosen)), float(not self.policy.critic_alone)
        losses, before = [], metrics.copy()
        plan, half_squares, veto = self._microbatches(experience.batch, mine), [], None
        of_text = self._learn_text(metrics) if policy_coef else []
        for k, microbatch in enumerate(plan):
            part = experience.select(microbatch.indices)
            terms = ppo_loss(self.zero, part, self.ppo, self.kl.coef, policy_coef)
            loss = terms.loss * microbatch.weight / divisor
            half_squares.append(half_square(terms) * microbatch.weight)
            is_last = k == len(plan) - 1
            if is_last and self.ppo.target_kl is not None:
                self.moved = self.world.sum(torch.stack(half_squares).sum()) / actions
                veto = (self.moved > self.ppo.target_kl) & self.moved.isfinite() & (self.progress.updates > 0)
            self.zero.backward(loss, is_last, veto)
            losses.append(loss.detach())
            self.world.tick()
            measure_update(metrics, terms, microbatch.weight)
        norm = self.zero.step(lr)
        if not math.isfinite(norm):  # nor is it if vetoed
            self.progress.metrics = before
        if veto is not None and bool(veto):
            return False
        if self.zero.overflowed:
            return self.update(experience, chosen, lr, before)
        if not math.isfinite(norm):
            step = self.steps[self.progress.iteration]
            names = [self.prompts[step[i]].id for i in experience.rollouts]
            stop_ppo(
                self.run, self.checkpoints, self.progress, self.policy, self.kl.coef, self._state, experience, names,
                mine, plan, losses, self.files_before, of_text,
            )  # fmt: skip
        metrics.add("grad_norm", norm / self.world.size, 1 / self.world.size)
        return True

    def _measure(self) -> None:
        """Measure held-out prompts if that is due after the newest iteration."""
        if self.is_done or self.ppo.measures(self.progress.iteration, len(self.steps)):
            self.heldout.measure_after(self.progress, self._state, self.actor, self.best)

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
                self.ppo.slots, self.split, progress, workspace=self.actor.workspace,
            )  # fmt: skip

    def _microbatches(self, batch: PackedBatch, sequences: Sequence[int]) -> list[Microbatch]:
        return rank_microbatches(
            batch.lengths, sequences, self.batch.tokens_per_microbatch, self.world.max, batch.prompts
        )

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides weights, optimizer and rollouts."""
        metrics = self.world.gather(self.progress.metrics.state())
        own = {"kl_coef": self.kl.coef, "metrics": metrics}
        own |= {"value_offset": self.policy.value_offset} if self.ppo.has_critic else {}
        own |= {"score_norm": self.scores.state()} if self.scores.normalises else {}
        return {**own, **self.progress.numbers(), **self.best.state()}

    def _restore(self) -> bool:
        """Continue from the newest checkpoint with --resume. Returns whether there is one."""
        share = partial(self.plan.share, ranks=self.world.size)
        if (saved := self.checkpoints.restore(lambda rank, state: share(state["iteration"], rank))) is None:
            return False
        own, x = saved.trainer, saved.experience
        self.kl.coef, self.policy.value_offset = own["kl_coef"], own.get("value_offset", 0.0)
        self.scores.restore(own.get("score_norm"))
        if x is not None:
            self.files_before = self.run.position()["files"]
            kept = {name: self.actor.keep([getattr(x, name)]) for name in ("trunk_TD", "critic_trunk_TD")}
            x = dataclasses.replace(x, **kept)
            self.actor.release()
        self.progress = Progress.of_numbers(own, x, Metrics.of_states(own["metrics"], self.world))
        self.best.restore(own)
        return True
