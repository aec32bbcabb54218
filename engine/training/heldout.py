"""Sample answers to held-out prompts, as PPO samples; report score and accuracy with confidence intervals.

Greedy answers say little about a policy: where two answers are about equally likely, any small change of the weights
flips the choice. Samples measure the distribution that PPO trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.base.in_language import in_language
from engine.base.languages import Language
from engine.base.seeds import derive_seed
from engine.batch import PackedBatch
from engine.cli.console import Console
from engine.distributed.world import World
from engine.generation.generate import Request, Sample, generate
from engine.generation.workspace import Workspace
from engine.packing import shard_of
from engine.settings import PPOSettings
from engine.text.encoding import Prompt
from engine.text.tokenizer import decode
from engine.training.checkpoint import Checkpoints
from engine.training.exact_match import canonical

if TYPE_CHECKING:  # scorers.py imports reward.py, which takes its intervals from here
    from engine.training.weighted_scorers import Scorer

# The measures that are printed, and their titles. Shares are printed as percentages.
SHOWN = {
    "exact_match": "right answers (exact match) on held-out prompts, sampled",
    "right_then_more": "right, then more text",
    "score": "score on held-out prompts",
    "wrong_language": "answers in a wrong language",
}
SHARES = ("exact_match", "right_then_more", "ended", "wrong_language")
NORMAL_95 = 1.96  # standard errors on each side of the mean of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and the half width of its 95 % interval."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate from one value per prompt, such as the share of its samples that are right.

        Uses the normal approximation over prompts, because the samples of one prompt are not independent.
        """
        n = len(values)
        mean = math.fsum(values) / n
        if n == 1:
            return cls(mean, math.inf)
        variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
        return cls(mean, NORMAL_95 * math.sqrt(variance / n))

    @classmethod
    def of_ratio(cls, totals: Sequence[float], counts: Sequence[float]) -> Estimate:
        """Estimate sum(totals) / sum(counts) from one pair per prompt, such as its right pairs and all its pairs.

        Uses the linear approximation of a ratio's variance over prompts. With equal counts it is `of` the ratios.
        """
        n, count = len(totals), math.fsum(counts)
        mean = math.fsum(totals) / count
        if n == 1:
            return cls(mean, math.inf)
        variance = math.fsum((t - mean * c) ** 2 for t, c in zip(totals, counts)) * n / (n - 1)
        return cls(mean, NORMAL_95 * math.sqrt(variance) / count)


@dataclass(frozen=True)
class Answers:
    """The samples of each prompt, and measures: one number per prompt, the mean over its samples.

    score             the reward, neither clipped nor penalised; of several rewards the weighted sum
    score/NAME        each of several rewards, without its weight
    wrong_language    share that is not in the run's language (engine/base/in_language.py)
    ended, length     share that end with an EOS; number of tokens
    kl                log-probability under the policy minus that under the reference, in nats
    exact_match       share equal to the record's output, ignoring outer blanks and the Unicode form
    right_then_more   share whose first line is the record's output and that continue after it
    """

    texts: list[list[str]]
    measures: dict[str, list[float]]

    def estimates(self) -> dict[str, Estimate]:
        return {name: Estimate.of(values) for name, values in self.measures.items()}

    def differences(self, before: Answers) -> dict[str, Estimate]:
        """Estimate the differences to another policy on the same prompts, paired by prompt: this one minus `before`."""
        return {
            name: Estimate.of([b - a for a, b in zip(before.measures[name], values)])
            for name, values in self.measures.items()
        }


def titles(names: Iterable[str]) -> dict[str, str]:
    """Return {measure: title} of the printed ones among `names`, each of several rewards after all others."""
    names = list(names)
    rewards = {n: f"{SHOWN['score']}, {n.removeprefix('score/')}" for n in names if n.startswith("score/")}
    return {name: title for name, title in SHOWN.items() if name in names} | rewards


def shown(name: str, x: Estimate) -> str:
    """Format a measure with its interval: 24.4 ± 2.1 %, or 0.312 ± 0.040."""
    return as_share(x) if name in SHARES else _with_interval(f"{x.mean:.3f}", f"{x.half:.3f}")


def as_share(x: Estimate) -> str:
    """Format a share as a percentage with its interval."""
    return f"{_with_interval(f'{100 * x.mean:.1f}', f'{100 * x.half:.1f}')} %"


def _with_interval(mean: str, half: str) -> str:
    return mean if half == "inf" else f"{mean} ± {half}"  # one prompt has no interval


def in_words(estimates: Mapping[str, Estimate]) -> str:
    """Format the printed measures of one policy in a line."""
    printed = titles(estimates)
    return ", ".join(f"{name.replace('_', ' ')} {shown(name, x)}" for name, x in estimates.items() if name in printed)


def compared(before: Answers, after: Answers) -> dict[str, dict[str, list[float]]]:
    """Return [mean, half interval] of each measure before and after, and of the paired difference, for result.json."""
    sides = {"before": before.estimates(), "after": after.estimates(), "difference": after.differences(before)}
    return {
        name: {side: [estimates[name].mean, estimates[name].half] for side, estimates in sides.items()}
        for name in before.measures
    }


@torch.no_grad()
def sample_answers(
    model: torch.nn.Module,
    tokenizer,
    eos_ids: Sequence[int],
    prompts: Sequence[Prompt],
    scorer: Scorer,
    ppo: PPOSettings,
    split: int | None,
    seed: int,
    rollouts: int,
    world: World,
    console: Console,
    checkpoints: Checkpoints | None = None,
    kl_of: Callable[[Sequence[Prompt], Sequence[Sample]], list[float]] | None = None,
    language: Language | None = None,
    workspace: Workspace | None = None,
) -> Answers:
    """Sample and score `ppo.eval_samples` answers to each prompt; every rank gets the same result.

    About `rollouts` answers are held in memory at once, as in training. With the same seed, two policies get the same
    random numbers. With a trainer's `checkpoints`, a signal ends it early. `kl_of` gives the measure kl: the KL to the
    reference of each answer of this rank. `workspace` as in `generate`.
    """
    workspace = workspace or Workspace(ppo.cache_tokens)

    def progress(*_: int) -> None:
        world.tick()
        if checkpoints is not None:
            checkpoints.raise_if_signalled()

    samples, per_round = ppo.eval_samples, max(world.size, rollouts // ppo.eval_samples)
    checkable = all(prompt.output for prompt in prompts)
    found: dict[int, list[tuple[str, dict[str, float]]]] = {}
    with console.bar(len(prompts), "held-out prompts", "prompt") as bar:
        for start in range(0, len(prompts), per_round):
            chosen = range(start, min(start + per_round, len(prompts)))
            mine = [chosen[i] for i in shard_of([len(prompts[i].tokens) for i in chosen], world.rank, world.size)]
            indices = [i for i in mine for _ in range(samples)]
            requests = [Request(prompts[i].tokens, i, n % samples, ppo.max_new_tokens) for n, i in enumerate(indices)]
            with checkpoints.part() if checkpoints else nullcontext():
                responses = generate(
                    model, requests, ppo.sampling, derive_seed(seed, "heldout"), eos_ids, ppo.slots, split,
                    progress, workspace=workspace,
                )  # fmt: skip
            texts = [decode(tokenizer, r.text_tokens) for r in responses]
            scores = _scores([prompts[i] for i in indices], responses, texts, scorer, world)
            kls = kl_of([prompts[i] for i in indices], responses) if kl_of else []
            for n, (i, response, text) in enumerate(zip(indices, responses, texts)):
                numbers = {name: of_answers[n] for name, of_answers in scores.items()}
                numbers |= {"ended": float(response.ended), "length": float(len(response.tokens))}
                if language is not None:
                    numbers["wrong_language"] = float(not in_language(text, language))
                if kl_of:
                    numbers["kl"] = kls[n]
                if checkable:
                    numbers |= checked(text, prompts[i].output)
                found.setdefault(i, []).append((text, numbers))
            bar.update(len(chosen))
    whole = {i: answers for part in world.gather(found) for i, answers in part.items()}
    rows = [whole[i] for i in range(len(prompts))]
    names = list(rows[0][0][1])
    measures = {name: [math.fsum(m[name] for _, m in row) / samples for row in rows] for name in names}
    return Answers([[text for text, _ in row] for row in rows], measures)


def _scores(
    prompts: Sequence[Prompt], responses: Sequence[Sample], texts: Sequence[str], scorer: Scorer, world: World
) -> dict[str, list[float]]:
    if not prompts:
        return {}
    sequences = [(*p.tokens, *r.tokens) for p, r in zip(prompts, responses)]
    batch = PackedBatch.from_sequences(sequences, world.device, [len(p.tokens) for p in prompts])
    trunk_TD = torch.cat([r.trunk_ND for r in responses]) if scorer.shares_trunk else None
    scores = scorer(batch, trunk_TD, [p.text for p in prompts], texts, [p.output for p in prompts])
    return scorer.measures(scores)


def checked(text: str, output: str) -> dict[str, float]:
    """Return `exact_match` and `right_then_more` of one answer, each 0 or 1, as Answers defines them."""
    text, output = canonical(text), canonical(output)
    first, more = (*text.split("\n", 1), "")[:2]
    return {
        "exact_match": float(text == output),
        "right_then_more": float(bool(more) and first.strip() == output),
    }
