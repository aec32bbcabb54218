"""What a real run will take: seconds of each step from its operations, before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.real.stages import Step

SIDE = 2048  # of the square product that measures this machine
REACHED = {"sft": 0.25, "reward": 0.25, "ppo": 0.2, "answers": 0.1, "scores": 0.25, "evaluate": 0.25}


def forecast(folder: Path, base: Path, left: Sequence[Step]) -> str:
    """Describe how long the steps that are left will take on this machine."""
    return ""
