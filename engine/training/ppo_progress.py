"""Where PPO stands between two optimizer steps: the rollouts in use, what was measured of them, what is left to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.objectives.experience import Experience
from engine.training.metrics import Metrics
from engine.training.warnings import Watch


@dataclass
class Progress:
    """Moved on by the trainer. Everything but this rank's tensors and sums goes into a checkpoint as `numbers`."""

    step: int = 0  # optimizer steps done since the run began
    iteration: int = 0  # the one under way, or the next
    updates: int = 0  # optimizer steps done in it
    collect_s: float = 0.0
    update_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # what the first and the last iteration logged
    experience: Experience | None = None  # the rollouts in use; None between iterations
    metrics: Metrics = field(default_factory=Metrics)
    watch: Watch = field(default_factory=Watch)

    def numbers(self) -> dict[str, Any]:
        """The plain fields, for JSON."""
        names = ("step", "iteration", "updates", "collect_s", "update_s", "history")
        return {**{name: getattr(self, name) for name in names}, "watch": asdict(self.watch)}

    @classmethod
    def of_numbers(cls, numbers: Mapping[str, Any], experience: Experience | None, metrics: Metrics) -> Progress:
        own = {name: numbers[name] for name in cls().numbers()} | {"watch": Watch(**numbers["watch"])}
        return cls(**own, experience=experience, metrics=metrics)

    def collected(self, experience: Experience, seconds: float) -> None:
        """The rollouts of an iteration are there."""
        self.experience, self.collect_s = experience, seconds

    def dropped(self) -> None:
        """The rollouts of the iteration are not worth keeping."""
        self.experience, self.metrics, self.collect_s = None, Metrics(), 0.0

    def updated(self, seconds: float) -> None:
        """One optimizer step was taken on them."""
        self.step, self.updates, self.update_s = self.step + 1, self.updates + 1, self.update_s + seconds

    def finished(self, iteration: int, logged: dict[str, float]) -> None:
        """The iteration is over and was logged."""
        self.history = [*self.history[:1], logged]
        self.iteration, self.updates, self.collect_s, self.update_s = iteration + 1, 0, 0.0, 0.0
        self.experience = None
