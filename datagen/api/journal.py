"""The journal: every answer that was paid for, append-only, on the disk before it counts, found again by content hash.

Nothing is ever overwritten or cut off, not even a torn end: reading skips it (engine/base/frames.py).

Kinds of frame (field "t"):
  "journal"  the first one; "v" is the version
  "sent"     an attempt leaves: "n" its number, "p" and "c" bounds on the tokens it may cost
  "closed"   an attempt is known to have cost "p" prompt and "c" completion tokens: 0 where the API refused it
  "answer"   request "k" was answered in attempt "n": "x" text, "f" finish_reason, "p", "c" tokens; closes the attempt
  "refused"  request "k" got no answer that can be used: "x" the reason
An attempt that was sent and never closed (a lost connection, a killed process) may have been charged.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datagen.api.chat import Reply
from engine.base.errors import UserError
from engine.base.frames import is_frame, pack_frame, read_frame, scan_frames

VERSION = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Damage(NamedTuple):
    """A stretch of the file that is no frame."""

    offset: int
    length: int


class Tokens(NamedTuple):
    """Prompt and completion tokens."""

    prompt: int
    completion: int

    def __add__(self, other: tuple[int, int]) -> Tokens:  # type: ignore[override]
        return Tokens(self.prompt + other[0], self.completion + other[1])

    def __sub__(self, other: tuple[int, int]) -> Tokens:
        return Tokens(self.prompt - other[0], self.completion - other[1])


NOTHING = Tokens(0, 0)


_FIELDS: dict[str, dict[str, type]] = {
    "journal": {"v": int},
    "sent": {"n": int, "p": int, "c": int},
    "closed": {"n": int, "p": int, "c": int},
    "answer": {"n": int, "p": int, "c": int, "k": bytes, "x": str, "f": str},
    "refused": {"k": bytes, "x": str},
}
_FIRST_FRAME = pack_frame({"t": "journal", "v": VERSION})


class Journal:
    """An open journal: one writer, by an exclusive lock that ends with the process.

    damage       what was found unreadable when it was opened
    paid         tokens of all closed attempts, those of earlier runs included
    unsettled    attempt -> the most it may have cost: of earlier runs those whose end is unknown, of this one also
                 those on their way
    waiting_for_disk   whether answers are held in memory because the disk is full
    """

    def __init__(
        self,
        path: Path,
        on_full: Callable[[str], None] = lambda _: None,
        disk_wait_s: float = 600.0,
        disk_retry_s: float = 1.0,
    ) -> None:
        """Opens or creates it. UserError if another process writes it, if it is no journal, or cannot be opened.

        disk_wait_s: while the disk is full, answers wait in memory for so long before the run gives up; it is tried
            again every disk_retry_s. on_full: told in one line when that begins.
        """
        self.path = path
        self.damage: list[Damage] = []
        self.paid = Tokens(0, 0)
        self.unsettled: dict[int, Tokens] = {}
        self.waiting_for_disk = False
        self._disk_wait_s, self._disk_retry_s = disk_wait_s, disk_retry_s
        self._on_full = on_full
        self._where: dict[bytes, tuple[int, int]] = {}  # of the answer: offset and length of its frame
        self._refusals: dict[bytes, str] = {}
        self._settled: set[int] = set()
        self._next_attempt = 0
        self._end = 0
        self._pending: list[tuple[bytes, asyncio.Future[int]]] = []
        self._flusher: asyncio.Task[None] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"cannot open the journal {path}: {error.strerror}: check the path") from error
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"the journal {self.path} is being written by another run: wait for it, or name another journal"
            raise UserError(message) from None

    def _load(self) -> None:
        size = os.fstat(self._file).st_size
        frames = 0
        if size:
            with mmap.mmap(self._file, size, access=mmap.ACCESS_READ) as data:
                for offset, length, payload in scan_frames(data):
                    if payload is None:
                        self.damage.append(Damage(offset, length))
                    else:
                        frames += 1
                        self._take(payload, offset, length)
        self._end = size
        if not frames:
            if size >= len(_FIRST_FRAME):
                raise UserError(f"{self.path} is not a journal of this program: name another file")
            self._write_now(_FIRST_FRAME)
            os.fsync(self._file)
            _fsync_folder(self.path.parent)

    def _take(self, frame: dict[str, Any], offset: int, length: int) -> None:
        kind = frame.get("t")
        if not isinstance(kind, str) or not is_frame(frame, _FIELDS.get(kind, {"t": type(None)})):
            raise UserError(f"{self.path} is not a journal of this program at byte {offset}: name another file")
        if kind == "journal" and frame["v"] > VERSION:
            raise UserError(f"{self.path} is of version {frame['v']}, this program reads {VERSION}: update the program")
        if kind == "sent":
            self.unsettled[frame["n"]] = Tokens(frame["p"], frame["c"])
        elif kind in ("closed", "answer"):
            self._settle(frame["n"], Tokens(frame["p"], frame["c"]))
        if kind == "answer":
            self._where[frame["k"]] = offset, length
            self._refusals.pop(frame["k"], None)
        elif kind == "refused":
            self._refusals[frame["k"]] = frame["x"]
        self._next_attempt = max(self._next_attempt, frame.get("n", -1) + 1)

    def _settle(self, attempt: int, tokens: Tokens) -> None:
        """Counts an attempt's cost, once: a frame is written twice where the disk refused the first time."""
        if attempt not in self._settled:
            self._settled.add(attempt)
            self.unsettled.pop(attempt, None)
            self.paid += tokens

    def __len__(self) -> int:
        """The number of answered requests."""
        return len(self._where)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def answer(self, key: bytes) -> Reply | None:
        """The answer to a request, or None."""
        if key not in self._where:
            return None
        offset, length = self._where[key]
        frame = read_frame(os.pread(self._file, length, offset))
        if frame is None:
            raise UserError(f"{self.path} changed on the disk at byte {offset} while it was in use: run again")
        return Reply(frame["x"], frame["f"], frame["p"], frame["c"])

    def refusal(self, key: bytes) -> str | None:
        """Why a request has no answer, where that was found out in an earlier run or this one."""
        return self._refusals.get(key)

    async def sent(self, bound: Tokens) -> int:
        """Notes that an attempt is leaving, which may cost so much; its number.

        Written but not fsynced: it survives the death of the process, though not that of the machine.
        """
        attempt = self._next_attempt
        self._next_attempt += 1
        frame = pack_frame({"t": "sent", "n": attempt, "p": bound.prompt, "c": bound.completion})
        if not self._try_to_write(frame):
            await self._durable(frame)
        self.unsettled[attempt] = bound
        return attempt

    def closed(self, attempt: int, tokens: Tokens = NOTHING) -> None:
        """Notes what an attempt without a usable answer has cost; written like `sent`."""
        frame = pack_frame({"t": "closed", "n": attempt, "p": tokens.prompt, "c": tokens.completion})
        if not self._try_to_write(frame):
            self._enqueue(frame)
        self._settle(attempt, tokens)

    async def put(self, key: bytes, reply: Reply, attempt: int) -> None:
        """Stores an answer; returns once it is on the disk. UserError if the disk stays full."""
        tokens = Tokens(reply.prompt_tokens, reply.completion_tokens)
        fields = {"t": "answer", "k": key, "n": attempt, "x": reply.text, "f": reply.finish_reason}
        frame = pack_frame({**fields, "p": tokens.prompt, "c": tokens.completion})
        offset = await self._durable(frame)
        self._where[key] = offset, len(frame)
        self._refusals.pop(key, None)
        self._settle(attempt, tokens)

    async def put_refusal(self, key: bytes, reason: str) -> None:
        """Stores that a request has no answer that can be used, and why; returns once it is on the disk."""
        await self._durable(pack_frame({"t": "refused", "k": key, "x": reason}))
        self._refusals[key] = reason

    async def close(self) -> None:
        """Waits for what is being written, then gives up the lock."""
        if self._flusher is not None:
            await asyncio.wait([self._flusher])
        self.release()

    def release(self) -> None:
        """Gives up the lock; nothing may be on its way to the disk."""
        os.close(self._file)

    def _durable(self, frame: bytes) -> asyncio.Future[int]:
        """Where the frame begins in the file, once it is on the disk."""
        future = self._enqueue(frame)
        return asyncio.shield(future)  # who waits may be cancelled, what was paid is written all the same

    def _enqueue(self, frame: bytes) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending.append((frame, future))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return future

    async def _flush(self) -> None:
        """Writes what is pending, one fsync a group: while the disk is busy with one group the next one gathers."""
        while self._pending:
            group, self._pending = self._pending, []
            try:
                offsets = await self._write_group([frame for frame, _ in group])
            except OSError as error:
                message = f"cannot write the journal {self.path}: {error.strerror}: make room and run again"
                for _, future in [*group, *self._pending]:
                    future.set_exception(UserError(message))
                    future.exception()  # not every frame has someone who waits for it
                self._pending = []
                return
            for (_, future), offset in zip(group, offsets):
                future.set_result(offset)

    async def _write_group(self, frames: list[bytes]) -> list[int]:
        """Writes and fsyncs; while the disk is full, tries again and again. The frames' offsets."""
        deadline_s = time.monotonic() + self._disk_wait_s
        while True:
            try:
                start = self._write_now(b"".join(frames))
                await asyncio.to_thread(os.fdatasync, self._file)
            except OSError as error:
                if error.errno not in _FULL or time.monotonic() >= deadline_s:
                    raise
                if not self.waiting_for_disk:
                    self.waiting_for_disk = True
                    self._on_full(f"the disk of {self.path} is full: answers wait in memory until there is room")
                await asyncio.sleep(self._disk_retry_s)
                continue
            self.waiting_for_disk = False
            ends = itertools.accumulate(map(len, frames), initial=start)
            return list(ends)[:-1]

    def _try_to_write(self, frame: bytes) -> bool:
        """False where the disk is full. Behind frames that wait for the disk nothing is written either."""
        if self.waiting_for_disk:
            return False
        try:
            self._write_now(frame)
        except OSError as error:
            if error.errno not in _FULL:
                raise UserError(f"cannot write the journal {self.path}: {error.strerror}: check the disk") from error
            return False
        return True

    def _write_now(self, data: bytes) -> int:
        """Appends all of it, or raises OSError and leaves a torn frame, which reading skips; where it begins."""
        start = self._end
        while self._end < start + len(data):
            self._end += os.write(self._file, data[self._end - start :])
        return start


def _fsync_folder(folder: Path) -> None:
    """Makes a new file's name survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
