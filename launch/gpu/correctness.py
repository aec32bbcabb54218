"""Stage 1: is it right on this GPU? Kernels, recorded decode steps, trainers, ZeRO, resume."""

from __future__ import annotations

from importlib.util import find_spec

from launch.gpu import graph_checks, kernel_checks
from launch.gpu.lab import Lab
from launch.gpu.lines import Case, Measured


def cases(lab: Lab) -> list[Case]:
    """Return the cases of all parts, those of single kernels first."""
    (lab.folder / "work").mkdir(exist_ok=True)
    found = [*kernel_checks.cases(lab), *graph_checks.cases(lab)]
    if find_spec("deepspeed") is None:  # the trainers import it
        return [*found, Case("trainers, ZeRO and resume", [], lambda: Measured({}), needs="deepspeed")]
    from launch.gpu import trainer_checks

    return [*found, *trainer_checks.cases(lab)]
