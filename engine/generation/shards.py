"""Shards of a sampling run: each response is on file as soon as it is finished, survives a kill, and is found again.

OUT.rankN.part, one a rank, holds frames (engine/base/frames.py): the first says which run it is of, every other
one is a response. What one number of ranks has begun, another can go on with.
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

from engine.base.errors import UserError
from engine.base.frames import MAGIC, is_frame, pack_frame, read_frame, scan_frames

VERSION = 1
SYNC_EVERY_S = 1.0  # a power cut costs what was finished since; a kill costs nothing
EOS, STOP, LENGTH = "eos", "stop", "length"


class SavedResponse(NamedTuple):
    """A finished response. end says why it ended: EOS, STOP (a stop string, which the text lacks) or LENGTH."""

    prompt_id: int
    sample_id: int
    text: str
    num_tokens: int
    end: str


def shard_path(output: Path, rank: int) -> Path:
    return output.with_name(f"{output.name}.rank{rank}.part")


def shard_paths(output: Path) -> list[Path]:
    """Every shard beside an output, whatever the number of ranks that wrote them."""
    if not output.parent.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(output.name)}\.rank\d+\.part")
    return sorted(path for path in output.parent.iterdir() if pattern.fullmatch(path.name) and path.is_file())


class Shards:
    """What the shards beside an output hold together, as it was when this was made.

    runs    what each one says of its run: {"run": its identity, "replaces": whether the output may be replaced}
    damage  bytes that are no frame: torn ends, or a disk's mistakes. What they held counts as never made.
    """

    def __init__(self, output: Path):
        """UserError for a file that is none of ours, or of a version that this program does not read."""
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
                    raise UserError(f"{path} has lost its beginning: --overwrite starts the run anew")
                if payload["v"] != VERSION:
                    raise UserError(
                        f"{path} is of version {payload['v']}, this program reads {VERSION}: --overwrite starts anew"
                    )
                if not is_frame(payload, {"run": dict, "replaces": bool}):
                    raise self._odd(path, offset)
                self.runs[path] = payload
            else:
                if not is_frame(payload, {"p": int, "k": int, "x": str, "n": int, "e": str}):
                    raise self._odd(path, offset)
                self._where.setdefault((payload["p"], payload["k"]), (path, offset, length))
        if path not in self.runs and not MAGIC.startswith(_head(path)):  # otherwise killed as it was begun
            raise UserError(f"{path} is no shard of a sampling run: move it away, or --overwrite removes it")

    @staticmethod
    def _odd(path: Path, offset: int) -> UserError:
        return UserError(f"{path} is no shard of a sampling run at byte {offset}: move it away")

    def __len__(self) -> int:
        """The number of responses."""
        return len(self._where)

    def keys(self) -> set[tuple[int, int]]:
        """(prompt id, sample id) of each response."""
        return set(self._where)

    def read(self, keys: Iterable[tuple[int, int]]) -> Iterator[SavedResponse]:
        """The responses of these keys, in this order, one at a time in memory. UserError if one is gone by now."""
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
    """A rank's own, open for appending: one writer, by an exclusive lock that ends with the process.

    A torn end is cut off. One that holds no response is removed when it is closed.
    """

    def __init__(self, output: Path, rank: int, run: Mapping[str, Any], replaces: bool = False):
        """Goes on with it if it is there. UserError if another process writes it, or it cannot be written."""
        self.path = shard_path(output, rank)
        self._synced_at = time.monotonic()
        self._is_synced = True
        self._has_responses = True  # until it is known
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
                _sync_folder(self.path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, response: SavedResponse) -> None:
        """Write a response; it reaches the disk with others, within SYNC_EVERY_S. UserError where the disk refuses."""
        p, k, x, n, e = response
        self._write(pack_frame({"t": "response", "p": p, "k": k, "x": x, "n": n, "e": e}))
        self._has_responses = True
        if time.monotonic() - self._synced_at >= SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        if not self._is_synced:
            try:
                os.fdatasync(self._file)
            except OSError as error:
                raise self._refused(error) from error
            self._is_synced = True
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Give up the lock. What was written stays."""
        if not self._has_responses and _is_named(self._file, self.path):
            self.path.unlink()
        os.close(self._file)

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if not issubclass(kind or object, UserError):  # the disk has refused already
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
            f"cannot write {self.path} ({error.strerror}): make room; the same command then goes on with the responses "
            "that were finished before this"
        )


def lock(file: int, path: Path) -> None:
    """UserError if another process holds the lock of a shard, or has just finished with it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = _is_named(file, path)
    except BlockingIOError:
        free = False
    if not free:
        raise UserError(f"{path} is being written by another run: wait for it, or give another --output")


def remove_shards(output: Path) -> None:
    """Remove the shards beside an output. UserError, and nothing is removed, if one is being written."""
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
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Make a new file's name survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
