"""The learning rate of a step: linear warm-up, then constant, linear or cosine."""

from __future__ import annotations

import math


def learning_rate(step: int, num_steps: int, peak: float, schedule: str, warmup_steps: int) -> float:
    """The rate of optimizer step `step`, counted from 0, of `num_steps`.

    Rises linearly to the peak over warmup_steps, then stays ("constant") or falls to 0 at the end ("linear", "cosine").
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return peak * (1 - done)
    assert schedule == "cosine", schedule
    return peak * 0.5 * (1 + math.cos(math.pi * done))
