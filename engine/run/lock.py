"""The lock of a run's folder, so that only one process at a time writes there."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from engine.base.errors import UserError

NAME = "lock"  # in the folder
TAKEN = (errno.EACCES, errno.EAGAIN)
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # a file system without locks, such as Lustre mounted so


class Lock:
    """An exclusive lock on a folder, which this process holds until `release` or until it ends, in whatever way.

    It belongs to the process: a run may be resumed in the process that stopped it. On a file system without locks
    nothing is held.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._file: IO[str] | None = None

    def check(self) -> None:
        """UserError that names the process that holds the lock, if another one does. Changes no file."""
        if self._file is None and os.access(self.path, os.W_OK):  # a finished run may lie in a read-only folder
            self._locked("r+").close()

    def take(self) -> None:
        """Hold the lock from now on. UserError as of `check`."""
        if self._file is not None:
            return
        self._file = self._locked("a+")
        with suppress(OSError):  # a full disk: who holds the lock is then not known
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def release(self) -> None:
        """Let others take the lock."""
        if self._file is not None:
            with self._file:
                self._file.truncate(0)
            self._file = None

    def _locked(self, mode: str) -> IO[str]:
        file = open(self.path, mode, encoding="utf-8")  # noqa: SIM115  closed by the caller
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNKNOWN:
                return file
            with file:
                if error.errno not in TAKEN:
                    raise
                file.seek(0)
                holder = file.read(200) or "another process"
            raise UserError(
                f"{self.path.parent} is being written by {holder}: wait until it ends, or give another --output"
            ) from None
        return file
