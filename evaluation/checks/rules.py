"""Strict accuracy of rules: all of a prompt's rules followed, each rule followed, and by kind of rule."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.checks.text import mean_of
from evaluation.data.questions import Answer, Question


@mean_of
def prompt_acc(question: Question, answer: str) -> float:
    """Return 1 if the answer follows all rules of its prompt, else 0."""
    return float(all(rule.holds(answer) for rule in question.rules))


@mean_of
def rule_acc(question: Question, answer: str) -> float:
    """Return the share of the prompt's rules that the answer follows."""
    return sum(rule.holds(answer) for rule in question.rules) / len(question.rules)


def by_rule(question: Question, answers: Sequence[Answer]) -> dict[str, float]:
    """Return for each kind of rule in the prompt the share of answers that follow it; of several of a kind the mean."""
    found: dict[str, list[float]] = {}
    for rule in question.rules:
        found.setdefault(rule.name, []).extend(float(rule.holds(answer.text)) for answer in answers)
    return {name: sum(values) / len(values) for name, values in found.items()}
