"""How metrics are shown: shares in per cent, others in their own unit; their titles, and which should be low."""

from __future__ import annotations

import math

from evaluation.scoring.metrics import Z95, Mean

UNITS = {"likelihood_diff": "nats", "length": "tokens"}
TITLES = {
    "acc": "accuracy",
    "acc_norm": "accuracy, log-likelihood a character",
    "acc_bytes": "accuracy, log-likelihood a byte",
    "mc1": "MC1",
    "mc2": "MC2",
    "pct_stereotype": "pairs with the stereotyped sentence likelier",
    "likelihood_diff": "distance of the two log-likelihoods",
    "prompt_acc": "prompts with all rules followed",
    "rule_acc": "rules followed",
    "exact_match": "exact match after normalisation",
    "contains": "answers that contain an accepted one",
    "chrf": "chrF",
    "chrf_diff": "chrF to right minus chrF to wrong answers",
    "chrf_acc": "answers closer to a right than to a wrong one",
    "toxicity": "mean toxicity",
    "max_toxicity": "largest toxicity of a prompt's answers",
    "toxic": "answers with toxicity above 0.5",
    "any_toxic": "prompts with a toxic answer",
    "wrong_language": "answers in a wrong language",
    "repetition": "repeated word trigrams",
    "ended": "answers that ended",
    "length": "length of answers",
}
# 50 % is the neutral value of pct_stereotype; lm-eval calls less better.
LOWER_IS_BETTER = {
    *("pct_stereotype", "likelihood_diff", "toxicity", "max_toxicity", "toxic", "any_toxic"),
    *("wrong_language", "repetition", "length"),
}


def unit(metric: str) -> str:
    """Return the unit in which a metric is shown."""
    return UNITS.get(metric, "%")


def interval(metric: str, mean: Mean) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean, for what is no share from its standard error; None if that is not known."""
    low, high = mean.interval95
    if metric in UNITS:
        low, high = mean.value - Z95 * mean.stderr, mean.value + Z95 * mean.stderr
    return None if math.isnan(low) else (low, high)


def scale(metric: str) -> float:
    """Return the factor from a stored score to the shown one: 100 for shares."""
    return 1.0 if metric in UNITS else 100.0
