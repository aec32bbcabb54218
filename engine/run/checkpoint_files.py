"""Checkpoints on disk: written whole or not at all, verified before use, the oldest removed.

checkpoints/latest                 the name of the newest one
checkpoints/step-000120/           state.json, trained.safetensors, manifest.json, rollout.safetensors (PPO) or
                                   columns.safetensors (DPO), and best.safetensors (--keep-best), a hard link where
                                   the file system has them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.base.atomic import sync, write_text
from engine.base.errors import UserError

STATE, MANIFEST, LATEST = "state.json", "manifest.json", "latest"
TRAINED, ROLLOUT, COLUMNS = "trained.safetensors", "rollout.safetensors", "columns.safetensors"
BEST = "best.safetensors"
REQUIRED, POSSIBLE = {STATE, TRAINED}, {STATE, TRAINED, ROLLOUT, COLUMNS, BEST}
FIELDS = {
    "step": int, "settings": dict, "identity": dict, "versions": dict, "ranks": int, "zero_stage": int, "files": dict,
    "seconds": float, "trainer": dict,
}  # fmt: skip
UNFINISHED = ".part-"  # prefix of a folder that is being written or removed; never read
JSON_BYTES = 64 << 20  # largest state or manifest that is read
SPARE_BYTES = 1 << 20  # besides the tensors: headers, state, manifest, file system


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files all have the size and SHA-256 in its manifest."""

    path: Path
    state: dict[str, Any]

    def open(self, name: str) -> Any:
        """Open a safetensors file: `keys()`, and `get_tensor(key)` into host memory."""
        return safe_open(self.path / name, framework="pt", device="cpu")

    def tensors(self, name: str) -> dict[str, Tensor] | None:
        """Read all tensors of a file; None when it is not there."""
        if not (self.path / name).is_file():
            return None
        with self.open(name) as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (a handle is no mapping)


def name_of(step: int) -> str:
    """Name of a step's folder."""
    return f"step-{step:06d}"


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors.values())


def check_room(folder: Path, needed_bytes: int, what: str) -> None:
    """UserError unless `needed_bytes` of the disk are free."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + SPARE_BYTES:
        raise UserError(
            f"{what} needs {needed_bytes / 1e9:.3f} GB, {free_bytes / 1e9:.3f} GB are free at {folder}: "
            "free some, or lower --keep"
        )


def write(
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Tensor]],
    keep: int,
    beside: Sequence[Path] = (),
    best: Path | None = None,
) -> None:
    """Write a checkpoint, then point `latest` at it, then remove all but `keep`.

    `best` is a file that goes into it by a link, as best.safetensors. Files and folders are synced before the rename,
    and so are the files `beside`, whose lengths the state records. UserError when the disk refuses; then nothing is
    left of it and earlier checkpoints are unchanged.
    """
    part, target = folder / f"{UNFINISHED}{name_of(step)}", folder / name_of(step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        check_room(folder, sum(map(bytes_of, files.values())), target.name)
        part.mkdir()
        for name, tensors in files.items():
            save_file(dict(tensors), part / name)
        (part / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for name in files:
            shutil.copymode(part / STATE, part / name)  # safetensors lets the owner alone read its files
        if best is not None:
            link(best, part / BEST)
        manifest = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in sorted(part.iterdir())}
        (part / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1), encoding="utf-8")
        for path in [*part.iterdir(), part, *(p for p in beside if p.exists())]:
            sync(path)
        if target.exists():  # one that was rejected
            _remove(target)
        os.rename(part, target)
        sync(folder)
        _point_latest(folder, target.name)
        for old in _superseded(folder, step, keep):
            _remove(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"checkpoint {target} cannot be written ({why}): fix that (disk space, permissions), then --resume "
            "continues from the one before"
        ) from error


def newest_whole(
    folder: Path, why_not: Callable[[Mapping[str, Any]], str | None] = lambda state: None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, and `name: reason` for each newer one that was rejected.

    `why_not(state)` may reject one. A whole checkpoint newer than the one `latest` names counts: the run was stopped
    before it updated `latest`.
    """
    paths = list(reversed(written(folder)))
    rejected, pointed = [], _read_latest(folder)
    if pointed is not None and pointed not in [p.name for p in paths]:
        rejected.append(f"{LATEST}: it names {pointed!r}, which is not there")
    for path in paths:
        checkpoint, reason = _checked(path)
        if checkpoint is not None:
            reason = why_not(checkpoint.state)
        if reason is None:
            return checkpoint, rejected
        rejected.append(f"{path.name}: {reason}")
    return None, rejected


def link(file: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system has none. Files here are replaced, never changed."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def written(folder: Path) -> list[Path]:
    """List the folders named like checkpoints, whole or not, by step."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if re.fullmatch(r"step-\d{6,18}", p.name) and p.is_dir()), key=_step_of)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(path: Path) -> tuple[Checkpoint | None, str | None]:
    """Return the checkpoint in a folder, or why it cannot be used."""
    try:
        files = dict(_read_json(path / MANIFEST)["files"])
        if not REQUIRED <= set(files) <= POSSIBLE:
            return None, f"{MANIFEST} names {', '.join(sorted(files)) or 'nothing'}"
        for name, noted in files.items():
            file = path / name
            if not file.is_file():
                return None, f"{name} is missing"
            if file.stat().st_size != noted["bytes"]:
                return None, f"{name} has {file.stat().st_size} bytes, {noted['bytes']} were written"
            if sha256(file) != noted["sha256"]:
                return None, f"{name} is not what was written (its SHA-256 differs)"
        state = _read_json(path / STATE)
        if lacking := [name for name, kind in FIELDS.items() if not isinstance(state.get(name), kind)]:
            return None, f"{STATE} lacks {', '.join(lacking)}"
        return Checkpoint(path, state), None
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except OSError as error:
        return None, f"it cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, f"{MANIFEST} or {STATE} is damaged"


def _read_json(path: Path) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        text = file.read(JSON_BYTES + 1)
    value = json.loads(text) if len(text) <= JSON_BYTES else None
    if not isinstance(value, dict):
        raise ValueError(path.name)
    return value


def _read_latest(folder: Path) -> str | None:
    try:
        with open(folder / LATEST, encoding="utf-8", errors="replace") as file:
            return file.read(200).strip()
    except OSError:
        return None


def _point_latest(folder: Path, name: str) -> None:
    write_text(folder / LATEST, name + "\n")


def _superseded(folder: Path, step: int, keep: int) -> list[Path]:
    """List all but the `keep` newest up to `step`. Later ones were rejected, so they go, too."""
    paths = written(folder)
    upto = [p for p in paths if _step_of(p) <= step]
    return upto[:-keep] + [p for p in paths if _step_of(p) > step]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _remove(path: Path) -> None:
    """Rename, then delete, so that no half checkpoint is left under its name."""
    gone = path.with_name(f"{UNFINISHED}old-{path.name}")
    os.rename(path, gone)
    shutil.rmtree(gone)


def _remove_unfinished(folder: Path) -> None:
    for path in [*folder.glob(f"{UNFINISHED}*"), *folder.glob(f".{LATEST}.*.tmp")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
