"""PPO on the top layers of a language model: collect, then epochs, minibatches, microbatches, loss, step.

Shapes: T tokens, A selected action columns, S sequences, D model.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.base.seeds import batches, derive_seed, even_parts, shuffled
from engine.batch import PackedBatch, action_mask
from engine.cli.console import Console
from engine.distributed.world import World
from engine.generation.generate import Request, generate
from engine.objectives.experience import Experience
from engine.objectives.kl_controller import KLController
from engine.objectives.losses import policy_loss, value_loss
from engine.objectives.schedule import learning_rate
from engine.packing import Microbatch, dealt, first_fit_decreasing
from engine.run.folder import Run
from engine.settings import BatchSettings, OptimizerSettings, PPOSettings, RunSettings, split_of
from engine.text.encoding import Prompt
from engine.text.tokenizer import decode
from engine.training.checkpoint import Checkpoints, fingerprint
from engine.training.export import body_weights
from engine.training.guards import COLUMNS, in_losses, in_rollouts, stop
from engine.training.metrics import Metrics
from engine.training.modules import Policy
from engine.training.ppo_columns import acted_columns, critic_start, final_rewards, rewarded_columns
from engine.training.ppo_progress import Progress
from engine.training.ppo_report import actions_of, derive, first_and_last, measure_rollouts, measure_update, row
from engine.training.scorers import Scorer, start_critic, use_scores
from engine.training.sharded import ShardedWeights
from engine.training.trunk import FrozenWeights, kept_rows, trunk_parameters
from engine.training.zero import ZeroStep, adamw


class PPOTrainer:
    """Proximal policy optimisation (Schulman et al. 2017) as in Ouyang et al. 2022, with the lower layers run once.

    The trunk's output is kept during generation; the old log-probabilities, the reference, the values and every epoch
    start from it. `model` ends up trained: its top is the policy's.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer,
        eos_ids: Sequence[int],
        prompts: Sequence[Prompt],
        scorer: Scorer,
        run_settings: RunSettings,
        optimizer: OptimizerSettings,
        batch: BatchSettings,
        ppo: PPOSettings,
        world: World,
        run: Run,
        console: Console,
        ds_config: dict,
    ):
        self.model, self.tokenizer, self.eos_ids = model, tokenizer, eos_ids
        self.prompts, self.scorer = prompts, scorer
        self.seed, self.optimizer, self.batch, self.ppo = run_settings.seed, optimizer, batch, ppo
        self.world, self.run, self.console = world, run, console
        self.score_clip = scorer.clip(ppo.score_clip)
        identity = fingerprint(model, [p.tokens for p in prompts])
        self.split = split_of(ppo.top_layers, model.num_layers)
        policy = Policy(model, self.split)
        self.policy, self.reference = policy, policy.reference()
        if ppo.critic == "separate":
            start_critic(policy, scorer)
        # A critic that began as a reward model with a trunk of its own reads that trunk.
        self.critic_trunk = scorer.own_trunk if ppo.critic == "separate" and scorer.trunk else None
        trunk = [] if self.split is None else trunk_parameters(model, self.split)
        head = [("head", w) for w in policy.frozen_head]
        self.frozen = FrozenWeights([*trunk, *head, *self.reference.named_parameters("reference")])
        # The head is read in every update; nothing else of the trunk is, so under ZeRO-3 it is shared out meanwhile.
        self.trunk = ShardedWeights([w for _, w in trunk if w is not model.head_weight], world)
        self.sharded = ds_config.get("zero_optimization", {}).get("stage", 0) == 3
        if self.sharded:
            # ZeRO-3 takes what it trains apart, so the rollouts' model keeps a top of its own: see publish.
            policy.body = copy.deepcopy(policy.body).requires_grad_(True)
            model.requires_grad_(False)
        self.zero = ZeroStep(policy, adamw(optimizer), world, ds_config, model.head_weight.dtype)
        self.kl = KLController(ppo.kl_coef, ppo.kl_target if ppo.kl_controller == "adaptive" else None, ppo.kl_horizon)
        # Whitening takes the mean away: one rollout alone would lose the sign of its score. Every rank needs one, too.
        fewest = max(2, world.size)
        steps = batches(len(prompts), batch.batch_size, batch.epochs, self.seed, "prompts", fewest=fewest)
        self.per_epoch = len(steps) // batch.epochs
        self.steps = steps[: run_settings.max_steps]
        identity["steps"] = len(self.steps)
        self.checkpoints = Checkpoints(self.zero, run, run_settings, world, console, identity)
        self.progress = Progress()

    def train(self) -> dict[str, Any]:
        """Run every iteration that is left. Returns the first and the last one's score and KL, and the warnings."""
        self._restore()
        bar = self.console.bar(len(self.steps), "ppo", "iteration")
        with self.checkpoints:
            for iteration in range(self.progress.iteration, len(self.steps)):
                self.iterate(iteration)
                bar.update(iteration + 1 - bar.n)
            self.world.at(None)
            self.trunk.gather()
            self.frozen.check()
            self.publish()
        bar.close()
        return {**first_and_last(self.progress.history), "warnings": self.progress.watch.warned}

    def iterate(self, iteration: int) -> dict[str, float]:
        """Collect once, update in every epoch and minibatch. Returns what was logged.

        An iteration that was stopped half-way goes on with its rollouts, at the minibatch that was next.
        """
        at, began = self.progress, time.monotonic()
        total = len(self.steps)
        lr = learning_rate(iteration, total, self.optimizer.lr, self.optimizer.schedule, self.optimizer.warmup(total))
        if at.experience is None:
            at.collected(self.collect(iteration, at.metrics), time.monotonic() - began)
        updates = [ids for epoch in range(self.ppo.ppo_epochs) for ids in self.minibatches(iteration, epoch)]
        for ids in updates[at.updates :]:
            began = time.monotonic()
            self.world.at(f"iteration {iteration + 1}, update {at.updates + 1}")
            self.update(at.experience, ids, lr, at.metrics)
            at.updated(time.monotonic() - began)
            if at.updates < len(updates):
                self.checkpoints.after_step(at.step, self._state, at.experience)
        logged = self.report(iteration, at, lr)
        self.kl.update(logged["objective/kl"], len(self.steps[iteration]))
        at.finished(iteration, logged)
        self.checkpoints.after_step(at.step, self._state, last=iteration + 1 == len(self.steps))
        return logged

    def collect(self, iteration: int, metrics: Metrics) -> Experience:
        """One rollout of each of the iteration's prompts (this rank's share), with every column PPO needs."""
        self.world.at(f"iteration {iteration + 1}, rollouts")
        self.publish()
        self.files_before = self.run.position()["files"]
        ids = self._share(iteration, self.world.rank)
        began = time.monotonic()
        self.trunk.gather()
        responses = self.checkpoints.unless_told(
            lambda: self._generate(iteration, ids), self.progress.step, self._state
        )
        if self.sharded:
            self.trunk.release()
        generated = time.monotonic()
        self.world.at(f"iteration {iteration + 1}, scoring")
        metrics.add("time/generation_s", generated - began)
        prompts = [self.prompts[self.steps[iteration][i]] for i in ids]
        batch = PackedBatch.from_sequences(
            [(*p.tokens, *r.tokens) for p, r in zip(prompts, responses)], self.world.device
        )
        action_T = action_mask(batch, [len(p.tokens) for p in prompts])
        trunk_TD = self._keep([r.trunk_ND for r in responses])
        critic_trunk_TD = self._keep([self.critic_trunk and self.critic_trunk(batch)])
        texts = [decode(self.tokenizer, r.text_tokens) for r in responses]
        read_TD = trunk_TD if self.scorer.trunk is None else critic_trunk_TD
        raw_S = self.scorer(batch, read_TD, [p.text for p in prompts], texts)
        score_S, clipped = use_scores(raw_S, self.score_clip)
        if self.score_clip is not None:
            metrics.add("rollout/score_clipped", clipped, len(responses))
        logprob_T, value_T, ref_logprob_T = acted_columns(
            self.zero, self.reference, batch, trunk_TD, critic_trunk_TD, action_T,
            self._plan(batch, range(batch.num_sequences)), self.ppo.temperature,
        )  # fmt: skip
        metrics.add("time/scoring_s", time.monotonic() - generated)
        self.world.at(f"iteration {iteration + 1}, advantages")
        ended_S = torch.tensor([r.ended for r in responses], device=self.world.device)
        final_S = final_rewards(self.ppo, score_S, ended_S)
        if iteration == 0:
            self.policy.value_offset = critic_start(value_T, action_T, final_S, self.world.sum)
            value_T = torch.where(action_T, value_T + self.policy.value_offset, 0.0)
        kl_T, reward_T, advantage_T, return_T = rewarded_columns(
            self.ppo, self.kl.coef, batch, action_T, (logprob_T, value_T, ref_logprob_T), final_S, self.world.sum
        )

        id_S = torch.tensor(ids, device=self.world.device)
        experience = Experience(
            batch, id_S, action_T, trunk_TD, logprob_T, ref_logprob_T, value_T, reward_T, advantage_T, return_T,
            score_S, critic_trunk_TD,
        )  # fmt: skip
        rollout_logprob_A = torch.tensor([x for r in responses for x in r.logprobs], device=self.world.device)
        measure_rollouts(metrics, experience, kl_T, self.kl.coef, ended_S, rollout_logprob_A, self.world.size)
        shown = zip(prompts[:4], texts, score_S[:4].tolist())
        self.run.sample(iteration + 1, [{"prompt": p.text, "response": t, "score": s} for p, t, s in shown])
        return experience

    def minibatches(self, iteration: int, epoch: int) -> list[list[int]]:
        """The iteration's rollouts, all ranks together, shuffled and cut into optimizer steps."""
        order = shuffled(len(self.steps[iteration]), self.seed, "minibatches", iteration, epoch)
        return even_parts(order, self.ppo.minibatch_size)

    def update(self, experience: Experience, ids: Sequence[int], lr: float, metrics: Metrics) -> None:
        """One optimizer step on the rollouts of these ids, wherever they were made."""
        wanted_S = torch.isin(experience.id_S, torch.tensor(list(ids), device=self.world.device))
        actions = self.world.sum((experience.action_T & wanted_S[experience.batch.sequence_T]).sum())
        mine, losses, before = wanted_S.nonzero()[:, 0].tolist(), [], metrics.copy()
        plan = self._plan(experience.batch, mine)
        for k, microbatch in enumerate(plan):
            part = experience.select(microbatch.ids)
            columns_A = part.action_T.nonzero()[:, 0]
            trunk, critic_trunk = (
                None if x is None else x.to(self.world.device, non_blocking=True)
                for x in (part.trunk_TD, part.critic_trunk_TD)
            )  # fmt: skip
            logprob_A, entropy_A, value_A = self.zero(part.batch, trunk, columns_A, self.ppo.temperature, critic_trunk)
            old_A = part.logprob_T[columns_A]
            policy = policy_loss(logprob_A, old_A, part.advantage_T[columns_A], self.ppo.clip)
            value = value_loss(value_A, part.value_T[columns_A], part.return_T[columns_A], self.ppo.value_clip)
            loss = (policy[0] + self.ppo.vf_coef * value[0]) * microbatch.weight / actions
            self.zero.backward(loss, last=k == len(plan) - 1)
            losses.append(loss.detach())
            self.world.tick()
            measure_update(metrics, logprob_A - old_A, entropy_A, policy, value, microbatch.weight)
        norm = self.zero.step(lr)
        if not math.isfinite(norm):
            self.progress.metrics = before
            self._stop(experience, mine, plan, losses)
        metrics.add("grad_norm", norm / self.world.size, 1 / self.world.size)

    def report(self, iteration: int, at: Progress, lr: float) -> dict[str, float]:
        """Reduce, write and print one iteration's numbers."""
        x = at.metrics.read(self.world)
        mine = list(zip(at.experience.score_S.tolist(), actions_of(at.experience).tolist()))
        scores, lengths = zip(*sum(self.world.gather(mine), []))
        derive(x, scores, lengths)
        x |= {"lr": lr, "objective/kl_coef": self.kl.coef, "time/collect_s": at.collect_s, "time/update_s": at.update_s}
        x["eps"] = len(scores) / (at.collect_s + at.update_s)
        x["time/generation_tokens_per_s"] = x["rollout/tokens"] / x["time/generation_s"]
        self.run.log(iteration + 1, x)
        self.run.scores(iteration + 1, scores)
        self.console.row(row(f"{iteration + 1}/{len(self.steps)}", x))
        for line in at.watch.look(iteration + 1, x):
            self.console.say(line)
        return x

    def _stop(self, x: Experience, mine: Sequence[int], plan: Sequence[Microbatch], losses: Sequence[Tensor]) -> None:
        """End the run at an update that was not made, of this rank's sequences `mine`: see guards.py."""
        step = self.steps[self.progress.iteration]
        ids = [self.prompts[step[i]].id for i in x.id_S.tolist()]
        trouble = in_rollouts(x, ids)
        if self.world.max(trouble is not None):  # the next run had better make them anew
            self.run.cut_back(self.files_before, self.run.position()["seconds"])
            self.progress.dropped()
        trouble = trouble or in_losses(losses, [[ids[s] for s in part.ids] for part in plan], len(COLUMNS))
        # What is wrong in one rollout is wrong in all advantages.
        chosen = range(len(ids)) if self.progress.experience is None else mine or [0]
        kept = {**x.select(chosen).tensors(), "value_offset": torch.tensor(self.policy.value_offset)}
        if not math.isfinite(self.policy.value_offset):  # of rollouts that are dropped: the next ones give another
            self.policy.value_offset = 0.0
        stop(
            self.run, self.checkpoints, self.progress.step, trouble, [ids[s] for s in chosen], kept, self._state,
            self.progress.experience,
        )  # fmt: skip

    def publish(self) -> None:
        """Bring the trained weights into `model`: under ZeRO-3 by a gather, elsewhere they are the same tensors."""
        if self.zero.stage == 3:
            own = dict(self.model.named_parameters())
            for name, weight in body_weights(self.zero.state_dict()).items():
                own[name].data.copy_(weight)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides weights, optimizer and rollouts."""
        metrics = self.world.gather(self.progress.metrics.state())
        own = {"kl_coef": self.kl.coef, "value_offset": self.policy.value_offset, "metrics": metrics}
        return {**own, **self.progress.numbers()}

    def _restore(self) -> None:
        if (saved := self.checkpoints.restore(lambda rank, state: self._share(state["iteration"], rank))) is None:
            return
        self.kl.coef, x = saved.trainer["kl_coef"], saved.experience
        self.policy.value_offset = saved.trainer["value_offset"]
        if x is not None:
            kept = {"trunk_TD": self._keep([x.trunk_TD]), "critic_trunk_TD": self._keep([x.critic_trunk_TD])}
            x = dataclasses.replace(x, **kept)
            if self.sharded:
                self.trunk.release()
        self.progress = Progress.of_numbers(saved.trainer, x, Metrics.of_states(saved.trainer["metrics"], self.world))

    def _keep(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        return kept_rows(parts, self.batch.trunk_cache * 1e9, self.world.device)

    def _share(self, iteration: int, rank: int) -> list[int]:
        """A rank's places in an iteration."""
        return dealt([len(self.prompts[i].tokens) for i in self.steps[iteration]], rank, self.world.size)

    def _generate(self, iteration: int, ids: Sequence[int]):
        step, epoch = self.steps[iteration], iteration // self.per_epoch
        requests = [Request(self.prompts[step[i]].tokens, step[i], epoch, self.ppo.max_new_tokens) for i in ids]
        with self.console.bar(len(requests), f"rollout {iteration + 1}", "response") as bar:

            def progress(finished: int, _: int) -> None:
                self.checkpoints.raise_if_told()
                self.world.tick()
                bar.update(finished - bar.n)

            return generate(
                self.model, requests, self.ppo.sampling, derive_seed(self.seed, "rollout"), self.eos_ids,
                self.ppo.slots, self.split, progress,
            )  # fmt: skip

    def _plan(self, batch: PackedBatch, sequence_ids: Sequence[int]) -> list[Microbatch]:
        """This rank's microbatches over some of its sequences; as many as on the rank that has most."""
        sequence_ids = list(sequence_ids)
        bins = first_fit_decreasing([batch.lengths[s] for s in sequence_ids], self.batch.tokens_per_microbatch)
        plan = [Microbatch(tuple(sorted((sequence_ids[i] for i in b), key=lambda s: batch.lengths[s]))) for b in bins]
        stand_in = Microbatch((min(range(batch.num_sequences), key=lambda s: batch.lengths[s]),), 0.0)
        return plan + [stand_in] * (self.world.max(len(plan)) - len(plan))
