"""Read back and check the files of an evaluation: manifest.json, results.json and records."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.base.strict_json import is_number, parse_whole, read_object
from evaluation.tasks import TASK_NAME

_NEXT_STEP = "restore the file, or evaluate again with --overwrite"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the content of manifest.json, or None if there is no file. UserError for a damaged file."""
    if not path.is_file():
        return None
    manifest = read_object(path, _NEXT_STEP)
    _check_manifest(manifest, path)
    return manifest


def read_results(path: Path) -> dict[str, Any] | None:
    """Return the content of results.json, or None if there is no file. UserError for a damaged file."""
    if not path.is_file():
        return None
    found = read_object(path, _NEXT_STEP)
    manifest, entries = found.get("manifest"), found.get("results")
    _check(path, isinstance(manifest, dict) and isinstance(entries, dict), "no valid results and manifest")
    _check_manifest(manifest, path)
    for name, entry in entries.items():
        is_entry = isinstance(entry, dict) and all(map(_is_metric, entry.items()))
        _check(path, is_entry and any(map(_is_value, entry)), f"no valid metrics for {name[:40]!r}")
        errors = [f"{key.removesuffix(',none')}_stderr,none" for key in entry if _is_value(key)]
        _check(path, all(error in entry for error in errors), f"no standard error for {name[:40]!r}")
    return found


def read_record(line: bytes, where: str, metrics: Collection[str] = ()) -> dict[str, Any]:
    """Return one line of a task's records. UserError unless it is a record with a score of each metric."""
    try:
        record = parse_whole(line.decode())
    except ValueError as error:
        raise UserError(f"{where}: bad JSON ({error}): remove the line, and the document is scored again") from None
    _check(where, isinstance(record, dict), "no JSON object")
    kinds = {"index": int, "id": str, "scores": dict, "ties": dict, "context_sha256": str}
    kinds |= dict.fromkeys(("subject", "subset"), str | None)
    wrong = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    _check(where, not wrong and not isinstance(record["index"], bool), f"no valid {wrong[0] if wrong else 'index'!r}")
    _check(where, all(map(is_number, record["scores"].values())), "scores that are not numbers")
    _check(where, all(isinstance(tie, bool) for tie in record["ties"].values()), "ties that are not true or false")
    _check(where, is_number(record.get("chance")), "no valid 'chance'")
    missing = [metric for metric in metrics if metric not in record["scores"]]
    _check(where, not missing, f"no score {missing[0] if missing else ''!r}")
    return record


def _check_manifest(manifest: dict[str, Any], path: Path) -> None:
    tasks = manifest.get("tasks")
    _check(path, isinstance(tasks, dict) and all(isinstance(a, dict) for a in tasks.values()), "no valid tasks")
    for key, about in tasks.items():
        task, lang = about.get("task"), about.get("lang")
        is_name = isinstance(task, str) and TASK_NAME.fullmatch(task) and isinstance(lang, str)
        _check(path, bool(is_name) and key == f"{task}.{lang}", f"no valid task and language for {key[:40]!r}")
        has_settings = isinstance(about.get("protocol"), str) and "data" in about
        _check(path, has_settings, f"no protocol or no data for {key[:40]!r}")
        get_language(lang)


def _is_value(key: str) -> bool:
    return key.endswith(",none") and "_stderr" not in key


def _is_metric(item: tuple[str, Any]) -> bool:
    """Return False for a metric or standard error that is not a number. An error may be "N/A" (for one document)."""
    key, value = item
    return not key.endswith(",none") or is_number(value) or ("_stderr" in key and value == "N/A")


def _check(where: object, is_valid: bool, what: str) -> None:
    if not is_valid:
        raise UserError(f"{where}: holds {what}: {_NEXT_STEP}")
