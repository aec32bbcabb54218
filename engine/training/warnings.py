"""What is worth a warning in PPO: one table of rules over an iteration's numbers, each said once, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Numbers = Mapping[str, float]  # what an iteration logs


@dataclass(frozen=True)
class Rule:
    """A warning when `holds(now, first)` in `patience` iterations on end; `first` is the run's first iteration."""

    name: str
    holds: Callable[[Numbers, Numbers], bool]
    patience: int
    text: str  # formatted with the iteration's numbers by name
    advice: str


# The limits are where practice and arithmetic agree that something is wrong, far from what a healthy run shows.
RULES = (
    # Choosing the best of n samples costs log n - (n - 1) / n nats: 50 nats is the best of 10^22, which no reward model
    # was ever asked about. Okapi aims at 6.
    Rule(
        "exploding_kl", lambda x, _: x["objective/kl"] > 50, 1,
        "the KL to the model before PPO is {objective/kl:.0f} nats a response",
        "look at samples.jsonl: is it still language? lower --lr, or raise --kl-coef",
    ),
    # A tenth of a nat is about one real choice between two tokens in seven; a model that begins there is left alone.
    Rule(
        "collapsed_entropy",
        lambda x, first: x["policy/entropy_avg"] < 0.1 and x["policy/entropy_avg"] < 0.2 * first["policy/entropy_avg"],
        1, "the policy's entropy has fallen to {policy/entropy_avg:.3f} nats a token",
        "look at samples.jsonl: are the answers all alike? lower --lr or raise --kl-coef",
    ),
    # A single empty answer in a batch is chance; one in ten is a habit.
    Rule(
        "empty_responses", lambda x, _: x["rollout/empty"] > 0.1, 1,
        "{rollout/empty:.0%} of the responses are empty",
        "look at what the reward gives an empty response, and at the end of the prompt template",
    ),
    # With the EOS out of reach, what is learned of endings comes from nowhere.
    Rule(
        "all_at_the_limit", lambda x, _: x["rollout/ended_with_eos"] < 0.02, 1,
        "hardly a response ends before the limit ({rollout/ended_with_eos:.0%} have an EOS)",
        "look whether SFT taught an EOS at all; raise --max-new-tokens, or give --missing-eos-penalty",
    ),
    # Half of the score's variance would be 0.7. Three iterations on end: 16 rollouts reach 0.5 by chance once in 25.
    Rule(
        "longer_is_better",
        lambda x, first: x["rollout/score_length_correlation"] > 0.5
        and x["rollout/response_length"] > 1.3 * first["rollout/response_length"],
        3, "responses grow ({rollout/response_length:.0f} tokens) and the score follows their length "
        "(correlation {rollout/score_length_correlation:.2f})",
        "look at answers early and late in samples.jsonl: does the reward model pay for length alone?",
    ),
    # PPO's own clip should be the exception: 0.05 to 0.2 is usual, beyond 0.4 most of the batch teaches nothing.
    Rule(
        "clip_fraction", lambda x, _: x["policy/clipfrac_avg"] > 0.4, 3,
        "{policy/clipfrac_avg:.0%} of the actions are clipped",
        "look at val/ratio; lower --lr or --ppo-epochs, or raise --minibatch-size",
    ),
    # Worse than the constant mean. The critic starts from nothing, so it is given time.
    Rule(
        "explained_variance", lambda x, _: x["val/explained_variance"] < 0, 20,
        "the critic has been worse than a constant for 20 iterations (explained variance "
        "{val/explained_variance:.2f})",
        "look at loss/value_avg; raise --lr or --vf-coef, or give --critic separate",
    ),
    # Ten deviations, or whatever was asked for, is where scores end that mean something: more than one in twenty there,
    # and what is beyond is rewarded no more.
    Rule(
        "score_clip", lambda x, _: x["rollout/score_clipped"] > 0.05, 1,
        "{rollout/score_clipped:.0%} of the scores are clipped",
        "look at the scores in samples.jsonl: raise --score-clip if the answers deserve more, else --kl-coef",
    ),
    # Then every advantage comes from the KL penalty and the critic's own error.
    Rule(
        "equal_scores", lambda x, _: x["rollout/score_std"] == 0, 1,
        "all rollouts have the same score",
        "look at the reward function or model, and at the responses in samples.jsonl",
    ),
)  # fmt: skip


@dataclass
class Watch:
    """Which rules have held for how long, and what was warned of; plain enough for a checkpoint's JSON."""

    first: dict[str, float] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    warned: list[dict[str, Any]] = field(default_factory=list)

    def look(self, iteration: int, x: Numbers) -> list[str]:
        """New warnings of an iteration (from 1 on); `x` is what it logs. A number not there warns of nothing."""
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
