"""The output folder of an evaluation: its lock, manifest, records and results.json, and what a run may add to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.base.atomic import write_json
from engine.base.errors import UserError
from engine.base.jsonl import write_objects
from engine.generation.shards import lock
from engine.run.folder import check_writable
from evaluation.results.manifest import differences
from evaluation.results.records import RecordFile
from evaluation.results.stored import read_manifest, read_results

MANIFEST, RESULTS, LOCK = "manifest.json", "results.json", "lock"


class Output:
    """The results of one model. Later runs may add tasks and languages, but must have the same model and settings.

    Only one run at a time writes to the folder: it holds an exclusive lock from `start` to `close`. A killed process
    releases the lock.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: int | None = None

    def check(self, manifest: Mapping[str, Any], overwrite: bool) -> None:
        """UserError if the folder is not writable, holds other files, or has results with another manifest."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file: give a folder")
        check_writable(self.path / MANIFEST if self.path.exists() else self.path)
        found = self.manifest()
        if found is None:
            if self.path.exists() and any(entry.name != LOCK for entry in self.path.iterdir()):
                raise UserError(f"--output {self.path} holds other files: give an empty or a new folder")
        elif not overwrite:
            self._raise_if_any(differences(found, manifest, ignore=("tasks",)), "of another model, code or machine")

    def check_task(self, key: str, about: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> None:
        """UserError if the folder has this task ("<task>.<lang>") with another manifest.

        ignore  entries that may differ
        """
        if (found := (self.manifest() or {}).get("tasks", {}).get(key)) is not None:
            self._raise_if_any(differences(found, about, ignore), f"of {key} with other settings")

    def _raise_if_any(self, names: list[str], what: str) -> None:
        if names:
            raise UserError(
                f"{self.path} holds results {what} ({', '.join(names[:5])} differ): give another --output, "
                "or --overwrite"
            )

    def start(self, manifest: Mapping[str, Any], overwrite: bool) -> None:
        """Create the folder, lock it and check it again. With overwrite, delete the earlier run's files.

        Do nothing if this object holds the lock already.

        UserError if another run holds the lock, or if the folder fails `check`.
        """
        if self._lock is not None:
            return
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
        """Release the lock if this object holds it."""
        if self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def add_task(self, key: str, about: Mapping[str, Any]) -> None:
        """Add a task to the manifest. Call it before the first record of the task is written."""
        self.check_task(key, about)
        manifest = self.manifest()
        assert manifest is not None
        if key not in manifest["tasks"]:
            manifest["tasks"][key] = about
            write_json(self.path / MANIFEST, manifest)

    def put_task(self, key: str, about: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """Write a task's records and manifest entry in place of those there: they were made from other records."""
        write_objects(self.records(about["task"], about["lang"]).path, records)
        manifest = self.manifest()
        assert manifest is not None
        manifest["tasks"][key] = about
        write_json(self.path / MANIFEST, manifest)

    def manifest(self) -> dict[str, Any] | None:
        """Return the content of manifest.json, or None if there is none. UserError for a damaged file."""
        return read_manifest(self.path / MANIFEST)

    def results(self) -> dict[str, Any]:
        """Return the content of results.json. UserError if no evaluation has finished in this folder."""
        found = read_results(self.path / RESULTS)
        if found is None:
            raise UserError(f"{self.path} has no {RESULTS}: give the --output folder of a finished launch/evaluate.py")
        return found

    def add_results(self, new: Mapping[str, Any]) -> None:
        """Merge the new entries into results.json."""
        before = read_results(self.path / RESULTS) or {}
        merged = {
            name: {**before.get(name, {}), **value} if isinstance(value, Mapping) else value
            for name, value in new.items()
        }
        write_json(self.path / RESULTS, merged)

    def records(self, task: str, lang: str) -> RecordFile:
        return RecordFile(self.path, task, lang)
