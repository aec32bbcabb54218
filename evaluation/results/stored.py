"""What is on file of an evaluation, checked as it is read back: the manifest, results.json and the records."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.base.strict_json import is_number, parse_whole, read_object
from evaluation.tasks import TASK_NAME

_NEXT_STEP = "restore the file, or evaluate anew with --overwrite"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A folder's manifest.json; None where there is none. UserError where it is not one of ours."""
    if not path.is_file():
        return None
    manifest = read_object(path, _NEXT_STEP)
    _check_manifest(manifest, path)
    return manifest


def read_results(path: Path) -> dict[str, Any] | None:
    """A folder's results.json; None where there is none. UserError where it is not one of ours."""
    if not path.is_file():
        return None
    found = read_object(path, _NEXT_STEP)
    manifest, entries = found.get("manifest"), found.get("results")
    _check(path, isinstance(manifest, dict) and isinstance(entries, dict), "no results with their manifest")
    _check_manifest(manifest, path)
    for name, entry in entries.items():
        is_entry = isinstance(entry, dict) and all(map(_is_metric, entry.items()))
        _check(path, is_entry and any(map(_is_value, entry)), f"no metrics of {name[:40]!r}")
        errors = [f"{key.removesuffix(',none')}_stderr,none" for key in entry if _is_value(key)]
        _check(path, all(error in entry for error in errors), f"no standard error of {name[:40]!r}")
    return found


def read_record(line: bytes, where: str, metrics: Collection[str] = ()) -> dict[str, Any]:
    """A line of a task's records, with a score under each of the metrics. UserError otherwise."""
    try:
        record = parse_whole(line.decode())
    except ValueError as error:
        raise UserError(f"{where}: bad JSON ({error}): remove the line, and it is scored again") from None
    _check(where, isinstance(record, dict), "no object")
    kinds = {"index": int, "id": str, "scores": dict, "ties": dict, "context_sha256": str, "subject": str | None}
    odd = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    _check(where, not odd and not isinstance(record["index"], bool), f"no proper {odd[0] if odd else 'index'!r}")
    _check(where, all(map(is_number, record["scores"].values())), "scores that are no numbers")
    _check(where, all(isinstance(tie, bool) for tie in record["ties"].values()), "ties that are no truth values")
    _check(where, is_number(record.get("chance")), "no chance")
    lacking = [metric for metric in metrics if metric not in record["scores"]]
    _check(where, not lacking, f"no score {lacking[0] if lacking else ''!r}")
    return record


def _check_manifest(manifest: dict[str, Any], path: Path) -> None:
    tasks = manifest.get("tasks")
    _check(path, isinstance(tasks, dict) and all(isinstance(a, dict) for a in tasks.values()), "no tasks")
    for key, about in tasks.items():
        task, lang = about.get("task"), about.get("lang")
        is_name = isinstance(task, str) and TASK_NAME.fullmatch(task) and isinstance(lang, str)
        _check(path, bool(is_name) and key == f"{task}.{lang}", f"no task and language of {key[:40]!r}")
        _check(path, isinstance(about.get("protocol"), str) and "data" in about, f"no protocol or data of {key[:40]!r}")
        get_language(lang)


def _is_value(key: str) -> bool:
    return key.endswith(",none") and "_stderr" not in key


def _is_metric(item: tuple[str, Any]) -> bool:
    """Of an entry's metrics and their errors, which are "N/A" where there is one document alone."""
    key, value = item
    return not key.endswith(",none") or is_number(value) or ("_stderr" in key and value == "N/A")


def _check(where: object, is_right: bool, what: str) -> None:
    if not is_right:
        raise UserError(f"{where}: holds {what}, as an evaluation writes them: {_NEXT_STEP}")
