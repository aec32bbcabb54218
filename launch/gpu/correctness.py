"""Stage 1: is it right on this GPU? Kernels, recorded decode steps, trainers, ZeRO, resume."""

from __future__ import annotations

from engine.device import be_deterministic
from launch.gpu import graph_checks, kernel_checks, trainer_checks
from launch.gpu.lab import Lab
from launch.gpu.lines import Case


def cases(lab: Lab) -> list[Case]:
    """Return the cases of all parts, single kernels first. Every run has the same bits, so a resumed one can."""
    be_deterministic()
    (lab.folder / "work").mkdir(exist_ok=True)
    return [*kernel_checks.cases(lab), *graph_checks.cases(lab), *trainer_checks.cases(lab)]
