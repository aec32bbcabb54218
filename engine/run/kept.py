"""Which step of a run --keep-best has kept, as result.json holds it, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def step_of(kept: Mapping[str, Any]) -> tuple[str, int]:
    """Return what the run counts, step or iteration, and the number of the kept one."""
    unit = "iteration" if "iteration" in kept else "step"
    return unit, kept[unit]


def in_words(kept: Mapping[str, Any]) -> str:
    """Describe `kept` of a result in a line: which step, its value, and that of the last."""
    unit, step = step_of(kept)
    line = f"kept: {unit} {step:,} of {kept[f'last_{unit}']:,}, held-out {kept['measure'].replace('_', ' ')} "
    line += f"{kept['value']:.4g}, the best of {kept['measured']:,} measured"
    return line + (f"; the last has {kept['last_value']:.4g}" if "last_value" in kept else "")
