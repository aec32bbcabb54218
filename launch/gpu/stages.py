"""The stages by number, cheapest first: each module has `cases(lab)`, the list of its cases."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.gpu.lab import Lab
    from launch.gpu.lines import Case


@dataclass(frozen=True)
class Stage:
    """A stage; `least_s` seconds are kept for it while the stages before it run."""

    number: int
    name: str
    shows: str
    least_s: float

    @property
    def file(self) -> str:
        return f"{self.number}-{self.name}.json"

    def cases(self, lab: Lab) -> list[Case]:
        """Return the stage's cases, cheapest first. Imports what the stage needs."""
        return importlib.import_module(f"launch.gpu.{self.name}").cases(lab)


STAGES = (
    Stage(0, "machine", "versions, and the rates from which all predictions start", 0),
    Stage(1, "correctness", "kernels against float64, graphs against calls, trainers against a CPU, resume", 90),
    Stage(2, "kernels", "kernels against the floor and against peers", 60),
    Stage(3, "decode", "a decode step of 7B shapes: time, launches, the longest kernels", 90),
    Stage(4, "rollouts", "three rollouts in a row: speed, slots, memory", 90),
    Stage(5, "ppo", "PPO at 7B against its plan, whole and with 40 and 24 GB", 120),
)
TABLE = 6  # the last stage writes the table of what the others left
