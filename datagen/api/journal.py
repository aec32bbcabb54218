"""The journal: an append-only file of all paid answers, synced to disk before use, keyed by the request's content hash.

The file is never overwritten or truncated. A torn last frame stays; readers skip it (engine/base/frames.py).

Frame types (field "t"):
  "journal"  the first frame; "v" is the version
  "sent"     an attempt begins: "n" its number, "p" and "c" upper bounds on its prompt and completion tokens
  "closed"   attempt "n" ended without an answer and cost "p" prompt and "c" completion tokens (0 if the API refused it)
  "answer"   attempt "n" answered request "k": "x" text, "f" finish_reason, "p" and "c" tokens; also ends the attempt
  "refused"  request "k" got no usable answer: "x" is the reason
An attempt with a "sent" frame and no end (a lost connection, a killed process) may have been charged.
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
from engine.base.atomic import sync
from engine.base.errors import UserError
from engine.base.frames import is_frame, pack_frame, read_frame, scan_frames

VERSION = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Damage(NamedTuple):
    """A byte range of the file that contains no valid frame."""

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


NO_TOKENS = Tokens(0, 0)


_FIELDS: dict[str, dict[str, type]] = {
    "journal": {"v": int},
    "sent": {"n": int, "p": int, "c": int},
    "closed": {"n": int, "p": int, "c": int},
    "answer": {"n": int, "p": int, "c": int, "k": bytes, "x": str, "f": str},
    "refused": {"k": bytes, "x": str},
}
_FIRST_FRAME = pack_frame({"t": "journal", "v": VERSION})


class Journal:
    """An open journal. An exclusive lock, released at close or when the process ends, allows one writer.

    damage       byte ranges that were unreadable when the journal was opened
    paid         tokens of all ended attempts, earlier runs included
    unsettled    attempt -> upper bound on its cost, for attempts without a recorded end: those lost in any run, and
                 those in flight now
    waiting_for_disk   whether answers wait in memory because the disk is full
    """

    def __init__(
        self,
        path: Path,
        on_full: Callable[[str], None] = lambda _: None,
        disk_wait_s: float = 600.0,
        disk_retry_s: float = 1.0,
    ) -> None:
        """Open or create the journal. UserError if another process holds it, it is not a journal, or opening fails.

        disk_wait_s: how long answers wait in memory while the disk is full, before the run stops. Writes are retried
            every disk_retry_s. on_full: called with a one-line message when the wait begins.
        """
        self.path = path
        self.damage: list[Damage] = []
        self.paid = Tokens(0, 0)
        self.unsettled: dict[int, Tokens] = {}
        self.waiting_for_disk = False
        self._disk_wait_s, self._disk_retry_s = disk_wait_s, disk_retry_s
        self._on_full = on_full
        self._where: dict[bytes, tuple[int, int]] = {}  # key -> offset and length of the answer's frame
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
            message = f"the journal {self.path} is being written by another run: wait for it, or pass another --journal"
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
                        self._load_frame(payload, offset, length)
        self._end = size
        if not frames:
            if size >= len(_FIRST_FRAME):
                raise UserError(f"{self.path} is not a journal of this program: name another file")
            self._write_now(_FIRST_FRAME)
            os.fsync(self._file)
            sync(self.path.parent)

    def _load_frame(self, frame: dict[str, Any], offset: int, length: int) -> None:
        kind = frame.get("t")
        if not isinstance(kind, str) or not is_frame(frame, _FIELDS.get(kind, {"t": type(None)})):
            raise UserError(f"{self.path} is not a journal of this program at byte {offset}: name another file")
        if kind == "journal" and frame["v"] > VERSION:
            raise UserError(f"{self.path} has version {frame['v']}, this program reads {VERSION}: update the program")
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
        """Count an attempt's cost once: after a failed write, its frame may be in the file twice."""
        if attempt not in self._settled:
            self._settled.add(attempt)
            self.unsettled.pop(attempt, None)
            self.paid += tokens

    def __len__(self) -> int:
        """Return the number of answered requests."""
        return len(self._where)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def answer(self, key: bytes) -> Reply | None:
        """Return the answer to a request, or None."""
        if key not in self._where:
            return None
        offset, length = self._where[key]
        frame = read_frame(os.pread(self._file, length, offset))
        if frame is None:
            raise UserError(f"{self.path} changed on disk at byte {offset} during the run: run again")
        return Reply(frame["x"], frame["f"], frame["p"], frame["c"])

    def refusal(self, key: bytes) -> str | None:
        """Return the recorded reason why a request got no answer, in any run, or None."""
        return self._refusals.get(key)

    async def begin_attempt(self, bound: Tokens) -> int:
        """Record an attempt with its cost bound before it is sent. Returns its number.

        The frame is written without fsync: it survives a killed process, but not a power failure.
        """
        attempt = self._next_attempt
        self._next_attempt += 1
        frame = pack_frame({"t": "sent", "n": attempt, "p": bound.prompt, "c": bound.completion})
        if not self._try_to_write(frame):
            await self._write_durably(frame)
        self.unsettled[attempt] = bound
        return attempt

    def end_attempt(self, attempt: int, tokens: Tokens = NO_TOKENS) -> None:
        """Record the cost of an attempt that ended without a usable answer. Written without fsync."""
        frame = pack_frame({"t": "closed", "n": attempt, "p": tokens.prompt, "c": tokens.completion})
        if not self._try_to_write(frame):
            self._enqueue(frame)
        self._settle(attempt, tokens)

    async def put(self, key: bytes, reply: Reply, attempt: int) -> None:
        """Store an answer and return once it is on disk. UserError if the disk stays full."""
        tokens = Tokens(reply.prompt_tokens, reply.completion_tokens)
        fields = {"t": "answer", "k": key, "n": attempt, "x": reply.text, "f": reply.finish_reason}
        frame = pack_frame({**fields, "p": tokens.prompt, "c": tokens.completion})
        offset = await self._write_durably(frame)
        self._where[key] = offset, len(frame)
        self._refusals.pop(key, None)
        self._settle(attempt, tokens)

    async def put_refusal(self, key: bytes, reason: str) -> None:
        """Store the reason why a request has no usable answer, and return once it is on disk."""
        await self._write_durably(pack_frame({"t": "refused", "k": key, "x": reason}))
        self._refusals[key] = reason

    async def close(self) -> None:
        """Wait for pending writes, then release the lock."""
        if self._flusher is not None:
            await asyncio.wait([self._flusher])
        self.release()

    def release(self) -> None:
        """Close the file, which releases the lock. There must be no pending writes."""
        os.close(self._file)

    def _write_durably(self, frame: bytes) -> asyncio.Future[int]:
        """Return a future of the frame's offset, done once the frame is on disk."""
        future = self._enqueue(frame)
        return asyncio.shield(future)  # cancelling the waiter must not cancel the write of a paid answer

    def _enqueue(self, frame: bytes) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending.append((frame, future))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return future

    async def _flush(self) -> None:
        """Write pending frames in groups, one fsync per group. The next group collects while the disk is busy."""
        while self._pending:
            group, self._pending = self._pending, []
            try:
                offsets = await self._write_group([frame for frame, _ in group])
            except OSError as error:
                message = f"cannot write the journal {self.path}: {error.strerror}: make room and run again"
                for _, future in [*group, *self._pending]:
                    future.set_exception(UserError(message))
                    future.exception()  # mark it as retrieved: some frames have no waiter
                self._pending = []
                return
            for (_, future), offset in zip(group, offsets):
                future.set_result(offset)

    async def _write_group(self, frames: list[bytes]) -> list[int]:
        """Write and fsync the frames, retrying while the disk is full. Returns their offsets."""
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
        """Write the frame and return True, or return False if the disk is full or other frames wait for it."""
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
        """Append all data and return its offset. On OSError a torn frame may remain; readers skip it."""
        start = self._end
        while self._end < start + len(data):
            self._end += os.write(self._file, data[self._end - start :])
        return start
