"""The folder of an evaluation: its manifest, the records of each task, results.json; and what may be added to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.base.atomic import write_json
from engine.base.errors import UserError
from engine.generation.shards import lock
from engine.run.folder import check_writable
from evaluation.results.manifest import differences
from evaluation.results.records import RecordFile
from evaluation.results.stored import read_manifest, read_results

MANIFEST, RESULTS, LOCK = "manifest.json", "results.json", "lock"


class Output:
    """Results of one model. Later runs may add tasks and languages, but no other model and no other settings.

    One run writes it at a time: from `start` to `close`, by an exclusive lock that ends with the process.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: int | None = None

    def check(self, manifest: Mapping[str, Any], overwrite: bool) -> None:
        """UserError where the folder cannot be written, holds other files, or results with another manifest."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file: give a folder")
        check_writable(self.path / MANIFEST if self.path.exists() else self.path)
        there = self.manifest()
        if there is None:
            if self.path.exists() and any(entry.name != LOCK for entry in self.path.iterdir()):
                raise UserError(f"--output {self.path} holds other files: give an empty or a new folder")
        elif not overwrite:
            self._refuse(differences(there, manifest, ignore=("tasks",)), "of another model, code or machine")

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
        """Make the folder and lock it, and empty it if it is to be overwritten.

        UserError where another run is writing it, or has written something else since it was checked.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lock(self._lock, self.path / LOCK)
        except UserError:
            os.close(self._lock)
            self._lock = None
            raise UserError(
                f"{self.path} is being written by another evaluation: wait for it, or give another --output"
            ) from None
        self.check(manifest, overwrite)
        if overwrite and self.manifest() is not None:
            for entry in self.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != LOCK:
                    entry.unlink()
        if self.manifest() is None:
            write_json(self.path / MANIFEST, {**manifest, "tasks": {}})

    def close(self) -> None:
        """Give up the lock, if this is who has it."""
        if self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def add_task(self, key: str, about: Mapping[str, Any]) -> None:
        """Write a task into the manifest before its first record is."""
        self.check_task(key, about)
        manifest = self.manifest()
        assert manifest is not None
        if key not in manifest["tasks"]:
            manifest["tasks"][key] = about
            write_json(self.path / MANIFEST, manifest)

    def manifest(self) -> dict[str, Any] | None:
        """What the folder says it holds; None where it is no folder of results."""
        return read_manifest(self.path / MANIFEST)

    def results(self) -> dict[str, Any]:
        """UserError where no evaluation has ended in this folder."""
        found = read_results(self.path / RESULTS)
        if found is None:
            raise UserError(f"{self.path} has no {RESULTS} of ours: give a folder that launch/evaluate.py has finished")
        return found

    def add_results(self, new: Mapping[str, Any]) -> None:
        """Write results.json: the new entries beside those that are there."""
        before = read_results(self.path / RESULTS) or {}
        merged = {
            name: {**before.get(name, {}), **value} if isinstance(value, Mapping) else value
            for name, value in new.items()
        }
        write_json(self.path / RESULTS, merged)

    def records(self, task: str, lang: str) -> RecordFile:
        return RecordFile(self.path, task, lang)
