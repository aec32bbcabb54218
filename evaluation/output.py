"""The folder of an evaluation: its manifest, the records of each task, results.json; and what may be added to it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.runs import check_writable
from evaluation.manifest import differences
from evaluation.records import RecordFile

MANIFEST, RESULTS = "manifest.json", "results.json"


class Output:
    """Results of one model. Later runs may add tasks and languages, but no other model and no other settings."""

    def __init__(self, path: Path):
        self.path = path

    def check(self, manifest: Mapping[str, Any], overwrite: bool) -> None:
        """UserError where the folder cannot be written, holds other files, or results with another manifest."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file: give a folder")
        check_writable(self.path / MANIFEST if self.path.exists() else self.path)
        there = self.manifest()
        if there is None:
            if self.path.exists() and any(self.path.iterdir()):
                raise UserError(f"--output {self.path} holds other files: give an empty or a new folder")
        elif not overwrite:
            self._refuse(differences(there, manifest, ignore=("tasks",)), "of another model or machine")

    def check_task(self, key: str, about: Mapping[str, Any]) -> None:
        """UserError where the folder has this task with another manifest."""
        if (there := (self.manifest() or {}).get("tasks", {}).get(key)) is not None:
            self._refuse(differences(there, about), f"of {key} with other settings")

    def _refuse(self, names: list[str], what: str) -> None:
        if names:
            raise UserError(
                f"{self.path} holds results {what} ({', '.join(names[:5])} differ): give another --output, "
                "or --overwrite"
            )

    def start(self, manifest: Mapping[str, Any], overwrite: bool) -> None:
        """Make the folder, and empty it if it is to be overwritten."""
        if overwrite and self.manifest() is not None:
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        if self.manifest() is None:
            write_json(self.path / MANIFEST, {**manifest, "tasks": {}})

    def add_task(self, key: str, about: Mapping[str, Any]) -> None:
        """Write a task into the manifest before its first record is."""
        manifest = self.manifest()
        assert manifest is not None
        if key not in manifest["tasks"]:
            manifest["tasks"][key] = about
            write_json(self.path / MANIFEST, manifest)

    def manifest(self) -> dict[str, Any] | None:
        """What the folder says it holds; None where it is no folder of results."""
        return _read_json(self.path / MANIFEST)

    def results(self) -> dict[str, Any]:
        """UserError where no evaluation has ended in this folder."""
        found = _read_json(self.path / RESULTS)
        if found is None or "manifest" not in found:
            raise UserError(f"{self.path} has no {RESULTS} of ours: give a folder that launch/evaluate.py has finished")
        return found

    def add_results(self, new: Mapping[str, Any]) -> None:
        """Write results.json: the new entries beside those that are there."""
        before = _read_json(self.path / RESULTS) or {}
        merged = {
            name: {**before.get(name, {}), **value} if isinstance(value, Mapping) else value
            for name, value in new.items()
        }
        write_json(self.path / RESULTS, merged)

    def records(self, task: str, lang: str) -> RecordFile:
        return RecordFile(self.path, task, lang)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): delete it, or give another folder") from error
    return value if isinstance(value, dict) else None
