"""Warnings of PPO: a table of rules over an iteration's metrics, each printed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Numbers = Mapping[str, float]  # what an iteration logs


@dataclass(frozen=True)
class Rule:
    """Warn when `holds(now, first)` in `patience` iterations in a row; `first` is the run's first iteration."""

    name: str
    holds: Callable[[Numbers, Numbers], bool]
    patience: int
    text: str  # formatted with the iteration's numbers by name
    advice: str


# The limits are far from the numbers of a healthy run.
RULES = (
    # The best of n samples costs log n - (n - 1) / n nats, so 50 nats is the best of 10^22 samples. Okapi aims at 6.
    Rule(
        "exploding_kl", lambda x, _: x["objective/kl"] > 50, 1,
        "the KL to the model before PPO is {objective/kl:.0f} nats per response",
        "look at samples.jsonl: is it still language? lower --lr, or raise --kl-coef",
    ),
    # 0.1 nat is about one choice between two tokens in every seven. A model that starts there gets no warning.
    Rule(
        "collapsed_entropy",
        lambda x, first: x["policy/entropy_avg"] < 0.1 and x["policy/entropy_avg"] < 0.2 * first["policy/entropy_avg"],
        1, "the policy's entropy has fallen to {policy/entropy_avg:.3f} nats per token",
        "look at samples.jsonl: are the answers all alike? lower --lr or raise --kl-coef",
    ),
    # One empty answer in a batch may be chance; one in ten is a habit.
    Rule(
        "empty_responses", lambda x, _: x["rollout/empty"] > 0.1, 1,
        "{rollout/empty:.0%} of the responses are empty",
        "look at what the reward gives an empty response, and at the end of the prompt template",
    ),
    # Without an EOS in the rollouts, PPO cannot learn when to end.
    Rule(
        "all_at_the_limit", lambda x, _: x["rollout/ended_with_eos"] < 0.02, 1,
        "hardly any response ends before the limit ({rollout/ended_with_eos:.0%} have an EOS)",
        "check whether SFT taught an EOS; raise --max-new-tokens, or give --missing-eos-penalty",
    ),
    # Three iterations in a row, because 16 rollouts reach 0.5 by chance once in 25.
    Rule(
        "longer_is_better",
        lambda x, first: x["rollout/score_length_correlation"] > 0.5
        and x["rollout/response_length"] > 1.3 * first["rollout/response_length"],
        3, "responses grow ({rollout/response_length:.0f} tokens) and the score follows their length "
        "(correlation {rollout/score_length_correlation:.2f})",
        "look at answers early and late in samples.jsonl: does the reward model pay for length alone?",
    ),
    # 0.05 to 0.2 is usual; above 0.4 most of the batch teaches nothing.
    Rule(
        "clip_fraction", lambda x, _: x["policy/clipfrac_avg"] > 0.4, 3,
        "{policy/clipfrac_avg:.0%} of the actions are clipped",
        "look at the ratio (val/ratio); lower --lr or --ppo-epochs, or raise --minibatch-size",
    ),
    # Below 0 the critic is worse than a constant. It starts untrained, so it gets time.
    Rule(
        "explained_variance", lambda x, _: x["val/explained_variance"] < 0, 20,
        "the critic has been worse than a constant for 20 iterations (explained variance "
        "{val/explained_variance:.2f})",
        "look at loss/value_avg; raise --lr or --vf-coef, or give --critic separate",
    ),
    # A clipped score rewards nothing beyond the clip.
    Rule(
        "score_clip", lambda x, _: x["rollout/score_clipped"] > 0.05, 1,
        "{rollout/score_clipped:.0%} of the scores are clipped",
        "look at the scores in samples.jsonl: raise --score-clip if the answers deserve more, else --kl-coef",
    ),
    # Then advantages come only from the KL penalty and the critic's error.
    Rule(
        "equal_scores", lambda x, _: x["rollout/score_std"] == 0, 1,
        "all rollouts have the same score",
        "look at the reward function or model, and at the responses in samples.jsonl",
    ),
    # A prompt whose responses have equal scores teaches nothing; above 90 % most of the generation is wasted.
    Rule(
        "equal_prompts", lambda x, _: x["rollout/equal_prompts"] > 0.9, 3,
        "for {rollout/equal_prompts:.0%} of the prompts all responses have the same score",
        "look for prompts that are too easy or too hard; raise --samples-per-prompt, or give a finer reward",
    ),
)  # fmt: skip


@dataclass
class Watch:
    """How long each rule has held, and the warnings so far; plain values for a checkpoint's JSON."""

    first: dict[str, float] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    warned: list[dict[str, Any]] = field(default_factory=list)

    def look(self, iteration: int, x: Numbers) -> list[str]:
        """Return an iteration's new warnings (iterations count from 1). Rules on metrics missing in `x` are skipped."""
        self.first = self.first or dict(x)
        lines = []
        for rule in RULES:
            try:
                holds = rule.holds(x, self.first)
            except KeyError:
                holds = False
            self.held[rule.name] = self.held.get(rule.name, 0) + 1 if holds else 0
            if self.held[rule.name] == rule.patience and rule.name not in [w["name"] for w in self.warned]:
                text = rule.text.format_map(x)
                self.warned.append({"iteration": iteration, "name": rule.name, "text": text})
                lines.append(f"warning: {text}; {rule.advice}")
        return lines
