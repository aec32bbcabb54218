"""Rewards for `--reward engine.reward_functions:NAME`: functions of the texts, which need no model.

`noise`, `exact_match` and `record_rules` are rewards; the others take settings in brackets and return one:
"NAME:length(5, 200)".
Whether a response ended is not in its text: --missing-eos-penalty sees to that.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from engine.base.errors import UserError
from engine.base.in_language import in_language
from engine.base.languages import get_language
from engine.base.record_fields import BadField
from engine.base.rules import Rule, read_rules, rules_in_json, units_of
from engine.training.exact_match import canonical

RewardFunction = Callable[[str, str], float]


def noise(prompt: str, response: str) -> float:
    """Return a number that carries no information about the response: the control of an experiment.

    A checksum of the text, uniform with mean 0 and standard deviation 1, like normalised scores of a reward model. What
    a policy seems to learn from it comes from drift and from the measure itself.
    """
    share = zlib.crc32(f"{prompt}\0{response}".encode()) / 2**32
    return (2 * share - 1) * math.sqrt(3)


def exact_match(prompt: str, response: str, output: str) -> float:
    """Return 1 if the response equals the record's output, else 0. Outer blanks and the Unicode form are ignored."""
    return float(canonical(response) == canonical(output))


def record_rules(prompt: str, response: str, output: str) -> float:
    """Return the share of the rules that the response follows; the record's output lists them, as JSON.

    The rules are those of engine/base/rules.py: [{"rule": "max_words", "value": 30}]. UserError for another output.
    """
    return _share(_parsed(output), response)


def rules(wanted: Sequence[dict[str, Any]]) -> RewardFunction:
    """Return a reward: the share of these rules that the response follows, the same rules for every prompt."""
    try:
        chosen = read_rules(wanted)
    except BadField as error:
        raise UserError(f"--reward rules: {error}") from None

    def reward(prompt: str, response: str) -> float:
        return _share(chosen, response)

    return reward


@lru_cache(maxsize=65536)
def _parsed(output: str) -> tuple[Rule, ...]:
    try:
        return rules_in_json(output)
    except BadField as error:
        raise UserError(f"--reward record_rules reads rules from a record's output: {error}") from None


def _share(chosen: Sequence[Rule], response: str) -> float:
    return sum(rule.holds(response) for rule in chosen) / len(chosen)


def language(code: str) -> RewardFunction:
    """Return a reward: 1 for a response in this language and its script, 0 for another or a blank one.

    engine/base/in_language.py says how it can tell: below 30 letters only by the script, so a number counts as right.
    """
    wanted = get_language(code)

    def reward(prompt: str, response: str) -> float:
        return float(bool(response.strip()) and in_language(response, wanted))

    return reward


def length(shortest: int, longest: int) -> RewardFunction:
    """Return a reward: 1 for a response of `shortest` to `longest` characters, outer blanks left out.

    Below, it falls to 0 for an empty response; above, to 0 for one twice as long as `longest`. So it is 0 to 1.
    """
    if not (isinstance(shortest, int) and isinstance(longest, int) and 0 <= shortest <= longest and longest > 0):
        raise UserError(f"--reward length({shortest}, {longest}): give two numbers of characters, the smaller first")

    def reward(prompt: str, response: str) -> float:
        count = len(response.strip())
        if count < shortest:
            return count / shortest
        return 1.0 if count <= longest else max(0.0, 2 - count / longest)

    return reward


def repetition(n: int = 3) -> RewardFunction:
    """Return a reward: minus the share of a response's n-grams of words that occurred in it before.

    It is 0 without a repetition, and above -1. In Chinese each character is a word. Fewer than n words give 0.
    """
    if not (isinstance(n, int) and n > 0):
        raise UserError(f"--reward repetition({n}): give a number of words, 1 or more")

    def reward(prompt: str, response: str) -> float:
        words = units_of(response)
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    return reward
