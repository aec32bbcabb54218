"""The learning rate schedule: linear warm-up, then constant, linear, cosine or warm-up, stable and decay (wsd)."""

from __future__ import annotations

import math

from engine.settings import OptimizerSettings


def learning_rate(
    step: int, num_steps: int, peak: float, schedule: str, warmup_steps: int, decay_steps: int = 0
) -> float:
    """Return the rate of optimizer step `step` (from 0) of `num_steps`. PPO counts iterations instead.

    Rises linearly to the peak over warmup_steps, then stays ("constant") or falls to 0 at the end ("linear", "cosine").
    "wsd" stays, then falls linearly in the last decay_steps (Hu et al. 2024, MiniCPM): the first of them has
    decay_steps / (decay_steps + 1) of the peak, the last 1 / (decay_steps + 1).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    if schedule == "wsd":
        return peak * min(1.0, (num_steps - step) / (decay_steps + 1))
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
        warmup, decay = optimizer.warmup(total), optimizer.decay(total)
        return learning_rate(iteration - begin, total, peak, optimizer.schedule, warmup, decay)

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
    if decay := optimizer.decay(num_steps):
        line += f", falling in the last {decay} step{'s' if decay > 1 else ''}"
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
