"""Read a run's folder: settings, metrics, samples, scores and evaluations of its stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.strict_json import is_number, parse_whole, read_object, shown_size
from engine.run.kept import step_of

STAGES = ("pretrain", "sft", "reward", "dpo", "ppo")
_RESTORE = "restore the file"
# Fields of a result that the report shows, for any stage.
_RESULTS = (
    *("seconds", "loss_first", "loss_last", "accuracy_before", "accuracy", "score_first", "score_last"),
    *("kl_first", "kl_last", "exact_match_before", "exact_match", "heldout_loss_before", "heldout_loss"),
    *("likelier_before", "likelier"),
)
OF_TEXTS = ("perplexity/", "bits_per_byte/")  # beginnings of fields with the name of a held-out text after them
ROWS_BYTES = 2**30  # largest file that is read
# Settings that say where a run is or how it was started, not what it computes. Runs that differ only in these are seeds
# of one experiment.
_NOT_THE_EXPERIMENT = {"seed", "output", "runs", "overwrite", "resume", "override", "save_every", "keep"}


@dataclass(frozen=True)
class Stage:
    """The folder of one stage.

    config    config.json: stage, settings, versions, commit, machine and, in newer runs, hardware
    metrics   metrics.jsonl, one mapping per step
    samples   samples.jsonl: prompts and answers
    scores    step -> score of each rollout (scores.jsonl, PPO only)
    result    result.json; None until the run has finished
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

    @property
    def template(self) -> str:
        """Return the name of the prompt template; in older runs it is a setting."""
        recorded = self.config.get("template")
        return recorded["name"] if recorded else self.settings.get("template") or ""

    @property
    def kept_step(self) -> int | None:
        """Return the step (PPO: iteration) whose weights --keep-best has exported; None without it."""
        kept = (self.result or {}).get("kept")
        return None if kept is None else step_of(kept)[1]

    def column(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric, where it was logged."""
        return [(row["step"], row[name]) for row in self.metrics if name in row]


@dataclass(frozen=True)
class RunFolder:
    """The stages of a run by name, and its evaluations by folder."""

    name: str
    stages: Mapping[str, Stage]
    evaluations: Mapping[str, Mapping[str, Any]]

    @property
    def lang(self) -> str:
        return next(iter(self.stages.values())).settings["lang"]

    @property
    def experiment(self) -> str:
        """Return a key that is equal for runs that differ only in their seed."""
        kept = {
            name: {k: v for k, v in stage.settings.items() if k not in _NOT_THE_EXPERIMENT}
            for name, stage in self.stages.items()
        }
        return json.dumps(kept, sort_keys=True)


def read_run(path: Path) -> RunFolder:
    """Read a folder such as runs/ne with its stages, or the folder of one stage. UserError if there is no run."""
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
    evaluations = {p.parent.name: _evaluation(p) for p in found}
    return RunFolder(str(path), stages, evaluations)


def _config(folder: Path) -> dict[str, Any] | None:
    """Read a stage's config.json; None if there is none (a model has a config.json, too)."""
    file = folder / "config.json"
    config = read_object(file, _RESTORE) if file.is_file() else {}
    settings = config.get("settings")
    if config.get("stage") not in STAGES or not isinstance(settings, dict):
        return None
    kinds = {"lang": str, "template": str | None}
    _check(file, all(isinstance(settings.get(n), kind) for n, kind in kinds.items()), "settings without a language")
    template = config.get("template")
    has_name = isinstance(template, dict) and isinstance(template.get("name"), str)
    _check(file, template is None or has_name, "a template without a name")
    parts = [config.get(name, {}) for name in ("hardware", "versions")]
    _check(file, all(isinstance(part, dict) for part in parts), "hardware or versions that are no object")
    return config


def _read_stage(folder: Path, config: Mapping[str, Any]) -> Stage:
    result = folder / "result.json"
    scores = _rows(folder / "scores.jsonl", {"step": _is_step, "scores": _is_numbers})
    answers = {"before_ppo": _is_text, "expected": _is_text, "score": _is_score}
    return Stage(
        folder,
        config,
        _rows(folder / "metrics.jsonl", {"step": _is_step}, others=is_number),
        _rows(folder / "samples.jsonl", {"step": _is_step, "prompt": _is_text, "response": _is_text}, answers),
        {row["step"]: row["scores"] for row in scores},
        _result(result) if result.is_file() else None,
    )


def _result(file: Path) -> dict[str, Any]:
    """Check a result: numbers by name (null if not measured), including the seconds."""
    found = read_object(file, _RESTORE)
    texts = [name for name in found if name.startswith(OF_TEXTS)]
    odd = [name for name in (*_RESULTS, *texts) if not _is_score(found.get(name))]
    kept = found.get("kept")
    is_kept = isinstance(kept, dict) and (_is_step(kept.get("step")) or _is_step(kept.get("iteration")))
    _check(file, kept is None or is_kept, "a kept step that is no number")
    _check(file, is_number(found.get("seconds")) and not odd, f"no number for {odd[0] if odd else 'seconds'}")
    return found


def _evaluation(file: Path) -> dict[str, Any]:
    found = read_object(file, _RESTORE)
    for name, kind in (("results", dict), ("group_subtasks", list), ("n-samples", dict)):
        parts = found.get(name, {})
        _check(file, isinstance(parts, dict) and all(isinstance(v, kind) for v in parts.values()), f"odd {name!r}")
    members = [m for names in found.get("group_subtasks", {}).values() for m in names]
    counts = [entry.get("effective") for entry in found.get("n-samples", {}).values()]
    numbers = [v for entry in found.get("results", {}).values() for v in entry.values() if isinstance(v, int | float)]
    _check(file, all(isinstance(m, str) for m in members), "members that are no names")
    _check(file, all(c is None or _is_step(c) for c in counts), "counts that are no whole numbers")
    _check(file, all(isinstance(v, bool) or is_number(v) for v in numbers), "numbers without bound")
    return found


def _rows(
    file: Path,
    fields: Mapping[str, Callable[[object], bool]],
    optional: Mapping[str, Callable[[object], bool]] | None = None,
    others: Callable[[object], bool] = lambda value: True,
) -> list[dict[str, Any]]:
    """Read the whole lines of a file that a run may still be writing; [] if it is not there.

    fields, optional: the type of each field; others: the type of any other field.
    """
    if not file.is_file():
        return []
    rows, kinds = [], {**fields, **(optional or {})}
    for number, line in enumerate(_text(file).split("\n")[:-1], 1):
        row = _parse(line, f"{file}:{number}")
        if absent := [name for name in fields if name not in row]:
            raise UserError(f"{file}:{number}: has no field {absent[0]!r}: it is not what a run writes")
        for name, value in row.items():
            _check(f"{file}:{number}", kinds.get(name, others)(value), f"{name[:40]!r} {value!r:.60}")
        rows.append(row)
    return rows


def _check(where: object, is_right: bool, what: str) -> None:
    if not is_right:
        raise UserError(f"{where}: holds {what}: it is not what a run writes, restore the file")


def _is_step(value: object) -> bool:
    return isinstance(value, int) and is_number(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_score(value: object) -> bool:
    return value is None or is_number(value)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_number, value))


def _text(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            data = stream.read(ROWS_BYTES + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): see to its permissions") from error
    if len(data) > ROWS_BYTES:
        raise UserError(f"{file} is above {shown_size(ROWS_BYTES)}: no run writes that much, restore the file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): restore the file") from None


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        value = parse_whole(line, any_text=True)  # markup.py escapes what a model may have written
    except ValueError as error:
        raise UserError(f"{where}: bad JSON ({error}): restore the line or remove it") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: holds {type(value).__name__}, not an object: it is not what a run writes")
    return value
