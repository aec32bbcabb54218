"""Read and check a DeepSpeed configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.base.errors import UserError
from engine.base.strict_json import read_object

# Fields that our own settings decide; a ds_config must not set them.
OURS = {
    "train_batch_size": "--batch-size",
    "train_micro_batch_size_per_gpu": "--tokens-per-microbatch",
    "gradient_accumulation_steps": "--tokens-per-microbatch",
    "gradient_clipping": "--max-grad-norm",
    "optimizer": "--lr, --weight-decay, --betas, --eps",
    "scheduler": "--schedule and --warmup-steps",
    "bf16": "--dtype",
    "fp16": "--dtype",
}


def read_ds_config(path: str | None) -> dict[str, Any]:
    """Read a DeepSpeed configuration file. UserError if it sets what our own settings decide, or without DeepSpeed."""
    if path is None:
        return {}
    try:
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    except ImportError:
        raise UserError(
            "--deepspeed_config needs the package deepspeed, which is missing: pip install deepspeed"
        ) from None
    config = read_object(Path(path), "see ds_configs/", what="--deepspeed_config")
    for key in OURS:
        if key in config:
            raise UserError(f"{path} sets {key!r}, which {OURS[key]} decides: remove it from the file")
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"{path}: 'zero_optimization' is {zero!r:.60}, it must be an object: see ds_configs/")
    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise UserError(
            f"{path}: {where!r} is {first['input']!r:.60} ({first['msg']}): correct or remove it"
        ) from error
    return config
