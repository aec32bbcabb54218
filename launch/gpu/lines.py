"""What a case of the proof predicts, measures and is held to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The smallest, the median and the largest of several measurements, and their number."""

    least: float
    median: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one or more numbers. NaN among them makes all three NaN."""
        if any(math.isnan(value) for value in values):
            return cls(math.nan, math.nan, math.nan, len(values))
        return cls(min(values), statistics.median(values), max(values), len(values))

    def map(self, function: Callable[[float], float]) -> Spread:
        """Return the spread of a monotonic function of the measurements, such as a rate of seconds."""
        least, most = sorted((function(self.least), function(self.most)))
        return Spread(least, function(self.median), most, self.count)


@dataclass(frozen=True)
class Goal:
    """The target of a measured number: its text, and whether (measured, predicted) meets it."""

    text: str
    is_met: Callable[[float, float], bool]
    needs_prediction: bool = True

    def verdict(self, measured: float, predicted: float | None) -> str:
        """Return "met", "missed", or "no prediction" where the target is a multiple of a prediction that is missing."""
        if self.needs_prediction and predicted is None:
            return "no prediction"
        return "met" if self.is_met(measured, predicted if predicted is not None else math.nan) else "missed"


def share_of_floor(share: float) -> Goal:
    """The predicted time is at least this share of the measured time."""
    return Goal(f">= {100 * share:g} % of the floor's speed", lambda m, p: p >= share * m)


def times_floor(times: float) -> Goal:
    """The measured number is at most so many times the predicted one."""
    return Goal(f"<= {times:g} x predicted", lambda m, p: m <= times * p)


def within(share: float) -> Goal:
    """The measured number is within this share of the predicted one, on both sides."""
    return Goal(f"predicted +- {100 * share:g} %", lambda m, p: abs(m - p) <= share * p)


def at_most(limit: float) -> Goal:
    return Goal(f"<= {limit:g}", lambda m, _: m <= limit, needs_prediction=False)


def at_least(limit: float) -> Goal:
    return Goal(f">= {limit:g}", lambda m, _: m >= limit, needs_prediction=False)


@dataclass(frozen=True)
class Expected:
    """A number before it is measured: its name, unit, prediction in that unit, and target.

    `of_machine` numbers say how fast or large something is; the others say whether it is right, on any machine.
    """

    what: str
    unit: str
    predicted: float | None = None
    goal: Goal | None = None
    of_machine: bool = True


def right(what: str, unit: str, limit: float) -> Expected:
    """A number that must be at most this limit on any machine: an error or a count of differences."""
    return Expected(what, unit, 0.0 if limit == 0 else None, at_most(limit), of_machine=False)


@dataclass(frozen=True)
class Measured:
    """What a case found: a spread or a number for each expected name, and details for the JSON file alone."""

    numbers: Mapping[str, Spread | float]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One measurement of a stage. `seconds` and `memory_gb` are guesses of what it takes on a GPU; `alone` gives it a
    new process; `needs` names a package without which it is left out."""

    name: str
    expected: Sequence[Expected]
    measure: Callable[[], Measured]
    seconds: float = 10.0
    memory_gb: float = 0.0
    alone: bool = False
    needs: str | None = None
