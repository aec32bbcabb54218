"""Check requested sequence lengths against the limit of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.models import LengthLimit, length_limit
from engine.settings import check_room
from engine.text.tokenizer import load_tokenizer
from evaluation.scoring.context_length import context_length
from launch.common import Job, base_config


def fit_lengths(
    settings: Sequence[Any], model_dir: str | Path, given: Collection[str], say: Callable[[str], None]
) -> list[Any]:
    """Return the settings with a default --max-length lowered to the model's limit, and print what changed.

    This also lowers a default --max-new-tokens to half of the limit. `given` names the fields that the user set.
    UserError if --max-length is given and above the limit, or if --max-new-tokens leaves no room for a prompt.
    """
    limit, asked = length_limit(base_config(model_dir)), _values(settings)
    if limit is None or asked.get("max_length", 0) <= limit.tokens:
        return list(settings)
    if "max_length" in given:
        raise _too_long(asked["max_length"], model_dir, limit)
    lowered = {"max_length": limit.tokens}
    if (new := asked.get("max_new_tokens", 0)) > limit.tokens // 2 and "max_new_tokens" not in given:
        lowered["max_new_tokens"] = max(1, limit.tokens // 2)
    check_room(lowered.get("max_new_tokens", new), limit.tokens)
    changes = ", ".join(f"--{k.replace('_', '-')} is {v}, not {asked[k]}" for k, v in lowered.items())
    say(f"note: {model_dir} serves {limit.tokens} tokens ({limit.field} in its config.json): {changes}")
    return [dataclasses.replace(s, **{k: v for k, v in lowered.items() if hasattr(s, k)}) for s in settings]


def fit_job(job: Job, model_dir: str | Path, *settings: Any) -> list[Any]:
    """Return a trainer's settings after fit_lengths, and record lowered values in the run's config.json."""
    fitted = fit_lengths(settings, model_dir, job.settings.given, job.console.say)
    before = _values(settings)
    job.run.lowered = {name: value for name, value in _values(fitted).items() if value != before[name]}
    return fitted


def served_length(model_dir: str | Path, asked: int | None) -> tuple[int, str]:
    """Return the longest sequence in tokens, as a number and in words: `asked`, or else the model's context.

    UserError if `asked` is above the model's limit.
    """
    config = base_config(model_dir)
    limit = length_limit(config)
    if asked is not None and limit is not None and asked > limit.tokens:
        raise _too_long(asked, model_dir, limit)
    length = asked or context_length(config, load_tokenizer(model_dir))
    return length, f"{length:,} tokens a sequence"


def _values(settings: Sequence[Any]) -> dict[str, Any]:
    return {name: value for s in settings for name, value in dataclasses.asdict(s).items()}


def _too_long(asked: int, model_dir: str | Path, limit: LengthLimit) -> UserError:
    return UserError(
        f"--max-length is {asked}, {model_dir} serves {limit.tokens} tokens ({limit.field} in its config.json): "
        "lower it"
    )
