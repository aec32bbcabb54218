"""The plan of a PPO run: which rollouts each iteration has, which rank makes them, and which update uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.base.mixture import Mixture
from engine.base.seeds import even_parts, shuffled
from engine.generation.sample import Request
from engine.packing import shard_of
from engine.settings import BatchSettings, PPOSettings
from engine.text.encoding import Prompt


@dataclass(frozen=True)
class Plan:
    """What each iteration samples.

    steps   a list per iteration: the prompt (its index) of each rollout, K in a row for each prompt
    before  the same shape: how often the run has drawn that prompt before
    """

    prompts: Sequence[Prompt]
    ppo: PPOSettings
    seed: int
    steps: list[list[int]]
    before: list[list[int]]

    @staticmethod
    def of(
        prompts: Sequence[Prompt],
        batch: BatchSettings,
        ppo: PPOSettings,
        seed: int,
        ranks: int,
        most: int | None,
        mixture: Mixture | None = None,
    ) -> Plan:
        """Plan `epochs` passes over the prompts, cut after `most` iterations.

        An iteration has at least two prompts if the batch has, since whitening one rollout alone removes the sign of
        its score; and a prompt per rank.
        """
        samples = ppo.samples_per_prompt
        size = batch.batch_size // samples
        mixture = mixture or Mixture.of_one(len(prompts))
        steps = mixture.batches(size, batch.epochs, seed, "prompts", fewest=max(min(2, size), ranks))[:most]
        drawn: Counter[int] = Counter()
        before = []
        for step in steps:
            before.append([])
            for i in step:
                before[-1] += [drawn[i]] * samples
                drawn[i] += 1
        return Plan(prompts, ppo, seed, [[i for i in step for _ in range(samples)] for step in steps], before)

    def share(self, iteration: int, rank: int, ranks: int) -> list[int]:
        """Return the rollouts of an iteration that a rank makes, as indices into it: all K of a prompt, or none."""
        samples = self.ppo.samples_per_prompt
        lengths = [len(self.prompts[i].tokens) for i in self.steps[iteration][::samples]]
        return [samples * g + k for g in shard_of(lengths, rank, ranks) for k in range(samples)]

    def requests(self, iteration: int, rollouts: Sequence[int]) -> list[Request]:
        """Return what to generate. A sample's address is never used twice in the run."""
        step, before, samples = self.steps[iteration], self.before[iteration], self.ppo.samples_per_prompt
        return [
            Request(self.prompts[step[i]].tokens, step[i], before[i] * samples + i % samples, self.ppo.max_new_tokens)
            for i in rollouts
        ]

    def updates(self, first: int = 0) -> int:
        """Return the optimizer steps of the iterations from `first` on."""
        sizes = (len(step) for step in self.steps[first:])
        return self.ppo.ppo_epochs * sum(-(-size // self.ppo.minibatch_size) for size in sizes)

    def minibatches(self, iteration: int, epoch: int) -> list[list[int]]:
        """Return the iteration's rollouts of all ranks, shuffled and cut into optimizer steps."""
        order = shuffled(len(self.steps[iteration]), self.seed, "minibatches", iteration, epoch)
        return even_parts(order, self.ppo.minibatch_size)
