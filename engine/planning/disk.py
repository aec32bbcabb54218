"""Predict the disk space of a run by part; refuse to start without it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from engine.base.errors import UserError
from engine.models.quantised import num_weights, stored_weights
from engine.training.trunk import frozen_parameters

STATE_BYTES = 12  # per trained weight in a checkpoint: float32 master and AdamW's two moments
NUMBER_BYTES = 45 + 75  # per logged number: in metrics.jsonl, and as a TensorBoard event
# Numbers per step (PPO: per iteration), with a few to spare.
NUMBERS = {"pretrain": 14, "sft": 6, "reward": 7, "dpo": 15, "ppo": 40}
REWARD_NUMBERS = 7  # more of them for each reward beyond the first
TEXT_BYTES = 6  # per token in samples.jsonl, roughly, for scripts of three bytes per letter
SAMPLES = 4  # per iteration
SCORE_BYTES = 12
SPARE = 1.05  # file systems use more than is written


def num_trained(model: nn.Module, split: int | None) -> int:
    """Number of trained weights: all, or those of the layers from `split` on and the final norm."""
    everything = sum(w.numel() for _, w in stored_weights(model))
    if split is None:
        return everything
    frozen = {id(p): p.numel() for _, p in frozen_parameters(model, split)}
    return everything - sum(frozen.values())


def kept_tokens(lengths: Sequence[int], model: nn.Module, epochs: int, budget_gb: float) -> int:
    """Number of tokens whose trunk outputs are kept in a file: none for one epoch, else what fits the budget."""
    row_bytes = model.hidden_size * next(model.parameters()).element_size()
    return min(sum(lengths), int(budget_gb * 1e9 / row_bytes)) if epochs > 1 else 0


def disk_parts(
    stage: str,
    model: nn.Module,
    trained: int,
    steps: int,
    save_every: int,
    keep: int,
    rollouts: int = 0,
    tokens: int = 0,
    kept_tokens: int = 0,
    columns: int = 0,
    rewards: int = 1,
    keep_best: bool = False,
) -> dict[str, float]:
    """Upper bounds in bytes by part: `rollouts` per iteration of up to `tokens` each, `kept_tokens` of trunk outputs,
    `columns` numbers of float64 that each checkpoint holds besides, `rewards` of PPO. With `keep_best`, the trained
    weights of the best step, while they are replaced, and of the best step of each checkpoint.

    A run without --save-every still writes one checkpoint when it is stopped. While a checkpoint is written, the one it
    replaces still exists.
    """
    weight_bytes = next(model.parameters()).element_size()
    checkpoint = trained * STATE_BYTES + rollouts * tokens * (model.hidden_size * weight_bytes + 40)
    checkpoint += 8 * columns
    samples = steps * (SAMPLES * tokens * TEXT_BYTES + rollouts * SCORE_BYTES)
    numbers = NUMBERS[stage] + REWARD_NUMBERS * (rewards - 1)
    best = {"best": trained * weight_bytes * (keep + 2 if save_every else 2)} if keep_best else {}
    return {
        **best,
        "checkpoints": checkpoint * (keep + 1 if save_every else 1),
        "model": num_weights(model) * weight_bytes,
        "logs": steps * numbers * NUMBER_BYTES + samples,
        "trunk": kept_tokens * model.hidden_size * weight_bytes,
    }


def disk_line(parts: Mapping[str, float], run_path: Path) -> str:
    """Describe the prediction. UserError if less is free; what the run's folder already holds counts as free."""
    needed = sum(parts.values()) * SPARE
    place = next(p for p in (run_path.absolute(), *run_path.absolute().parents) if p.exists())
    held = sum(p.stat().st_size for p in run_path.rglob("*") if p.is_file()) if run_path.is_dir() else 0
    free = shutil.disk_usage(place).free
    named = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    if needed > free + held:
        raise UserError(
            f"the run may take {_size(needed)} ({named}), {_size(free + held)} are free at {place}: free some, lower "
            "--keep or --trunk-cache, or choose another --output"
        )
    return f"up to {_size(needed)} ({named}); {_size(free)} free"


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
