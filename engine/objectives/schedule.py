"""The learning rate schedule: linear warm-up, then constant, linear or cosine."""

from __future__ import annotations

import math

from engine.settings import OptimizerSettings


def learning_rate(step: int, num_steps: int, peak: float, schedule: str, warmup_steps: int) -> float:
    """Return the rate of optimizer step `step` (from 0) of `num_steps`. PPO counts iterations instead.

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


def ppo_rates(
    iteration: int, num_iterations: int, optimizer: OptimizerSettings, critic_lr: float | None, critic_warmup: int
) -> tuple[float, float | None]:
    """Return the learning rates of an iteration of PPO, the policy's and the critic's; None if they are one.

    In the first `critic_warmup` iterations the policy's is 0; its schedule begins after them.
    """

    def rate(peak: float, begin: int) -> float:
        total = num_iterations - begin
        return learning_rate(iteration - begin, total, peak, optimizer.schedule, optimizer.warmup(total))

    policy = 0.0 if iteration < critic_warmup else rate(optimizer.lr, critic_warmup)
    if critic_lr is None and not critic_warmup:
        return policy, None
    return policy, rate(optimizer.lr if critic_lr is None else critic_lr, 0)


def rate_line(optimizer: OptimizerSettings, num_steps: int) -> str:
    """Describe the learning rate of a run for the header, and whether a preset's warm-up is cut."""
    steps, most = optimizer.warmup(num_steps), optimizer.max_warmup_steps
    line = f"{optimizer.lr:g}, {optimizer.schedule}"
    if steps:
        line += f" after a warm-up of {steps} step{'s' if steps > 1 else ''}"
    if optimizer.warmup_steps is None and steps < most:
        line += f" (a tenth of the run, where the preset has {most}: --warmup-steps {most} takes them)"
    return line


def warmup_warning(optimizer: OptimizerSettings, num_steps: int) -> str | None:
    """Return a warning if the requested warm-up is half of the run or more, else None."""
    steps = optimizer.warmup(num_steps)
    if 2 * steps < num_steps or not optimizer.warmup_steps:
        return None
    if steps > num_steps:
        what = f"is longer than the run of {num_steps}: the learning rate gets to {num_steps / steps:.0%} of its peak"
    else:
        what = f"is {steps / num_steps:.0%} of the run's {num_steps} steps"
    return f"warning: the warm-up of {steps} steps {what}; leave --warmup-steps out for a tenth"
