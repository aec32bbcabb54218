"""Fields of settings as flags, and the checks that settings share."""

from __future__ import annotations

import math
from dataclasses import MISSING, field
from typing import Any

from engine.base.errors import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")
DTYPE_HELP = "of weights and activations: auto is bfloat16 on a GPU that has it, else float16; float32 on a CPU"


def flag(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """Return a dataclass field with its --help text. Without a default, a preset or the user must give the value."""
    return field(default=default, metadata={"help": help, **metadata})


def check_at_least(limit: float, settings: Any, *names: str) -> None:
    """Raise UserError unless each named setting is finite and at least `limit`, or None (not given)."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not limit <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value}: give {limit} or more")


def check_above_zero(settings: Any, *names: str, hint: str = "") -> None:
    """Raise UserError unless each named setting is above 0, or None (not given)."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} is {value}: give more than 0{hint}")


def check_room(max_new_tokens: int, max_length: int) -> None:
    """Raise UserError unless a one-token prompt and the longest response fit into max_length."""
    if max_new_tokens >= max_length:
        raise UserError(
            f"--max-new-tokens is {max_new_tokens}, --max-length is {max_length}: no prompt fits, "
            "lower the first or raise the second"
        )


def check_top_layers(top_layers: str) -> None:
    """Raise UserError unless top_layers is a positive number or "all"."""
    if top_layers != "all" and not (top_layers.isdecimal() and int(top_layers) > 0):
        raise UserError(f"--top-layers is {top_layers!r}: give a number of layers, 1 or more, or all")


def split_of(top_layers: str, num_layers: int) -> int | None:
    """Return the index of the first trained layer, or None if all are trained.

    UserError if the model has fewer layers than top_layers.
    """
    if top_layers == "all":
        return None
    if int(top_layers) > num_layers:
        raise UserError(f"--top-layers is {top_layers}, the model has {num_layers} layers: give fewer, or all")
    return num_layers - int(top_layers)
