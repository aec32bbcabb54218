"""Where PPO stands between two optimizer steps: the current rollouts, their metrics, what is left to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.objectives.experience import Experience
from engine.training.metrics import Metrics
from engine.training.warnings import Watch


@dataclass
class Progress:
    """Advanced by the trainer. `numbers` is its part in a checkpoint: all but this rank's tensors and sums."""

    step: int = 0  # optimizer steps done in the run
    iteration: int = 0  # the current one, or the next
    updates: int = 0  # optimizer steps done in the iteration
    measured: int = 0  # the last iteration after which held-out prompts were measured
    collect_s: float = 0.0
    update_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # metrics of the first and the last iteration
    experience: Experience | None = None  # the current rollouts; None between iterations
    metrics: Metrics = field(default_factory=Metrics)
    watch: Watch = field(default_factory=Watch)

    def numbers(self) -> dict[str, Any]:
        """Return the plain fields, for JSON."""
        names = ("step", "iteration", "updates", "measured", "collect_s", "update_s", "history")
        return {**{name: getattr(self, name) for name in names}, "watch": asdict(self.watch)}

    @classmethod
    def of_numbers(cls, numbers: Mapping[str, Any], experience: Experience | None, metrics: Metrics) -> Progress:
        numbers = {"measured": numbers["iteration"], **numbers}  # checkpoints of older runs lack it
        own = {name: numbers[name] for name in cls().numbers()} | {"watch": Watch(**numbers["watch"])}
        return cls(**own, experience=experience, metrics=metrics)

    def collected(self, experience: Experience, seconds: float) -> None:
        """Record the rollouts of the iteration."""
        self.experience, self.collect_s = experience, seconds

    def dropped(self) -> None:
        """Drop the rollouts of the iteration."""
        self.experience, self.metrics, self.collect_s = None, Metrics(), 0.0

    def updated(self, seconds: float) -> None:
        """Record one optimizer step."""
        self.step, self.updates, self.update_s = self.step + 1, self.updates + 1, self.update_s + seconds

    def finished(self, iteration: int, logged: dict[str, float]) -> None:
        """Record the end of an iteration."""
        self.history = [*self.history[:1], logged]
        self.iteration, self.updates, self.collect_s, self.update_s = iteration + 1, 0, 0.0, 0.0
        self.experience = None
