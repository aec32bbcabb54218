"""Shards of a sampling run: each response is written when it is finished, and survives a kill.

OUT.rankN.part, one per rank, holds frames (engine/base/frames.py): the first names the run, each other one is a
response. Any number of ranks can continue a run.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from engine.base.atomic import sync
from engine.base.errors import UserError
from engine.base.frames import MAGIC, is_frame, pack_frame, read_frame, scan_frames

VERSION = 1
SYNC_EVERY_S = 1.0  # a power cut loses at most this; a kill loses nothing
EOS, STOP, LENGTH = "eos", "stop", "length"


class SavedResponse(NamedTuple):
    """A finished response. `end` is EOS, STOP (the text excludes the stop string) or LENGTH."""

    prompt_id: int
    sample_id: int
    text: str
    num_tokens: int
    end: str


def shard_path(output: Path, rank: int) -> Path:
    return output.with_name(f"{output.name}.rank{rank}.part")


def shard_paths(output: Path) -> list[Path]:
    """List the shards of an output, for any number of ranks."""
    if not output.parent.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(output.name)}\.rank\d+\.part")
    return sorted(path for path in output.parent.iterdir() if pattern.fullmatch(path.name) and path.is_file())


class Shards:
    """The content of an output's shards at the time of construction.

    runs    {path: {"run": identity of the run, "replaces": whether it may replace the output}}
    damage  bytes that are not frames (torn ends, disk errors); their responses are generated again
    """

    def __init__(self, output: Path):
        """UserError for a file that is not a shard, or of another version."""
        self.runs: dict[Path, dict[str, Any]] = {}
        self.damage = 0
        self._where: dict[tuple[int, int], tuple[Path, int, int]] = {}
        for path in shard_paths(output):
            self._scan(path)

    def _scan(self, path: Path) -> None:
        for offset, length, payload in _frames(path):
            if payload is None:
                self.damage += length
            elif path not in self.runs:
                if payload.get("t") != "run" or not is_frame(payload, {"v": int}):
                    raise UserError(f"{path} has lost its beginning: --overwrite starts the run again")
                if payload["v"] != VERSION:
                    raise UserError(
                        f"{path} is of version {payload['v']}, this program reads {VERSION}: --overwrite starts again"
                    )
                if not is_frame(payload, {"run": dict, "replaces": bool}):
                    raise self._odd(path, offset)
                self.runs[path] = payload
            else:
                if not is_frame(payload, {"p": int, "k": int, "x": str, "n": int, "e": str}):
                    raise self._odd(path, offset)
                self._where.setdefault((payload["p"], payload["k"]), (path, offset, length))
        if path not in self.runs and not MAGIC.startswith(_head(path)):  # else the run was killed while it started
            raise UserError(f"{path} is not a shard of a sampling run: move it away, or --overwrite removes it")

    @staticmethod
    def _odd(path: Path, offset: int) -> UserError:
        return UserError(f"{path} is not a shard of a sampling run at byte {offset}: move it away")

    def __len__(self) -> int:
        """The number of responses."""
        return len(self._where)

    def keys(self) -> set[tuple[int, int]]:
        """Return (prompt id, sample id) of each response."""
        return set(self._where)

    def read(self, keys: Iterable[tuple[int, int]]) -> Iterator[SavedResponse]:
        """Yield the responses of these keys in order, one at a time. UserError if one has changed on disk."""
        with ExitStack() as stack:
            files: dict[Path, int] = {}
            for key in keys:
                path, offset, length = self._where[key]
                if path not in files:
                    files[path] = os.open(path, os.O_RDONLY)
                    stack.callback(os.close, files[path])
                frame = read_frame(os.pread(files[path], length, offset))
                if frame is None:
                    raise UserError(f"{path} changed on the disk at byte {offset} while it was in use: run again")
                yield SavedResponse(frame["p"], frame["k"], frame["x"], frame["n"], frame["e"])


class Shard:
    """A rank's shard, open for appending by one writer, with an exclusive lock that ends with the process.

    A torn end is cut off. A shard without responses is removed on close.
    """

    def __init__(self, output: Path, rank: int, run: Mapping[str, Any], replaces: bool = False):
        """Open or create. UserError if another process writes it, or it cannot be written."""
        self.path = shard_path(output, rank)
        self._synced_at = time.monotonic()
        self._is_synced = True
        self._has_responses = True  # until the file is read
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"cannot write {self.path} ({error.strerror}): choose another --output") from error
        try:
            lock(self._file, self.path)
        except UserError:
            os.close(self._file)
            raise
        try:
            frames = list(_frames(self.path))
            self._has_responses = sum(payload is not None for _, _, payload in frames) > 1
            whole = max((offset + length for offset, length, payload in frames if payload is not None), default=0)
            os.ftruncate(self._file, whole)
            if not whole:
                self._write(_first_frame(run, replaces))
                self.sync()
                sync(self.path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, response: SavedResponse) -> None:
        """Write a response; it is synced within SYNC_EVERY_S. UserError if the disk refuses."""
        p, k, x, n, e = response
        self._write(pack_frame({"t": "response", "p": p, "k": k, "x": x, "n": n, "e": e}))
        self._has_responses = True
        if time.monotonic() - self._synced_at >= SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Wait until everything is on disk."""
        if not self._is_synced:
            try:
                os.fdatasync(self._file)
            except OSError as error:
                raise self._refused(error) from error
            self._is_synced = True
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Release the lock. The file stays."""
        if not self._has_responses and _is_named(self._file, self.path):
            self.path.unlink()
        os.close(self._file)

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if not issubclass(kind or object, UserError):  # the disk has already refused
                self.sync()
        finally:
            self.close()

    def _write(self, data: bytes) -> None:
        self._is_synced = False
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self.path} ({error.strerror}): make room; the same command then continues after the "
            "finished responses"
        )


def lock(file: int, path: Path) -> None:
    """UserError if another process holds the lock of a shard, or has just removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = _is_named(file, path)
    except BlockingIOError:
        free = False
    if not free:
        raise UserError(f"{path} is being written by another run: wait for it, or give another --output")


def remove_shards(output: Path) -> None:
    """Remove an output's shards. UserError, and none is removed, if one is being written."""
    with ExitStack() as stack:
        paths = shard_paths(output)
        for path in paths:
            file = os.open(path, os.O_RDWR)
            stack.callback(os.close, file)
            lock(file, path)
        for path in paths:
            path.unlink()


def _first_frame(run: Mapping[str, Any], replaces: bool) -> bytes:
    return pack_frame({"t": "run", "v": VERSION, "run": dict(run), "replaces": replaces})


def _frames(path: Path) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield from scan_frames(data)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(MAGIC))


def _is_named(file: int, path: Path) -> bool:
    """Return whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
