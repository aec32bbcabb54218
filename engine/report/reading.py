"""What a run left behind, read back: settings, metrics, samples, scores and evaluations of its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UserError

STAGES = ("sft", "reward", "ppo")
# Settings that say where a run lies or how it was started, not what it computes: runs equal but for these are seeds of
# one experiment.
_NOT_THE_EXPERIMENT = {"seed", "output", "runs", "overwrite", "resume", "override", "save_every", "keep"}


@dataclass(frozen=True)
class Stage:
    """One stage's folder.

    config    config.json: stage, settings, versions, commit, machine and, of newer runs, hardware
    metrics   metrics.jsonl, one mapping a step
    samples   samples.jsonl: prompts and answers
    scores    step -> score of each rollout (scores.jsonl, PPO only)
    result    result.json, None while the run has not finished
    """

    path: Path
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    scores: Mapping[int, Sequence[float]]
    result: Mapping[str, Any] | None

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.config["settings"]

    def column(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, where it was logged."""
        return [(row["step"], row[name]) for row in self.metrics if name in row]


@dataclass(frozen=True)
class RunFolder:
    """The stages of one run by name, and its evaluations by the folder they lie in."""

    name: str
    stages: Mapping[str, Stage]
    evaluations: Mapping[str, Mapping[str, Any]]

    @property
    def lang(self) -> str:
        return next(iter(self.stages.values())).settings["lang"]

    @property
    def experiment(self) -> str:
        """Equal for runs that differ in their seed alone."""
        kept = {
            name: {k: v for k, v in stage.settings.items() if k not in _NOT_THE_EXPERIMENT}
            for name, stage in self.stages.items()
        }
        return json.dumps(kept, sort_keys=True)


def read_run(path: Path) -> RunFolder:
    """A folder such as runs/ne with its stages, or the folder of one stage. UserError where there is no run."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder: give a run's, such as runs/ne")
    folders = {name: path / name for name in STAGES} if _config(path) is None else {"": path}
    stages = {}
    for folder in folders.values():
        if (config := _config(folder)) is not None:
            stages[config["stage"]] = _read_stage(folder, config)
    if not stages:
        raise UserError(f"{path} holds no run ({', '.join(STAGES)}): give the folder of a run, such as runs/ne")
    found = sorted(path.glob("results.json")) + sorted(path.glob("*/results.json"))
    evaluations = {p.parent.name: _object(p) for p in found}
    return RunFolder(str(path), stages, evaluations)


def _config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a stage's folder; None where there is none. (A model has a config.json too.)"""
    file = folder / "config.json"
    config = _object(file) if file.is_file() else {}
    return config if config.get("stage") in STAGES and isinstance(config.get("settings"), dict) else None


def _read_stage(folder: Path, config: Mapping[str, Any]) -> Stage:
    scores = {row["step"]: row["scores"] for row in _rows(folder / "scores.jsonl", "step", "scores")}
    result = folder / "result.json"
    return Stage(
        folder,
        config,
        _rows(folder / "metrics.jsonl", "step"),
        _rows(folder / "samples.jsonl", "step", "prompt", "response"),
        scores,
        _object(result) if result.is_file() else None,
    )


def _rows(file: Path, *fields: str) -> list[dict[str, Any]]:
    """The whole lines of a file that a run may be writing at this moment; none when it is not there."""
    if not file.is_file():
        return []
    lines = _text(file).split("\n")[:-1]
    rows = [_parse(line, f"{file}:{number}") for number, line in enumerate(lines, 1)]
    for number, row in enumerate(rows, 1):
        for field in fields:
            if field not in row:
                raise UserError(f"{file}:{number}: has no field {field!r}: it is not what a run writes")
    return rows


def _object(file: Path) -> dict[str, Any]:
    return _parse(_text(file), str(file))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): see to its permissions") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): restore the file") from None


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: bad JSON ({error}): restore the line or remove it") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: holds {type(value).__name__}, not an object: it is not what a run writes")
    return value
