"""Write files that appear whole or not at all: a temporary name beside the target, fsync, then a rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: Path, text: bool = False) -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the context ends, in binary or as UTF-8 text with "\\n" line ends.

    After an error, `path` is as before and the temporary file is gone. After a kill, `path` is as before. Raises
    OSError when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w" if text else "wb", **({"encoding": "utf-8", "newline": "\n"} if text else {})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a writer that takes a path: it writes to the path yielded, which becomes `path`.

    The file is as readable as any other that this process writes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # a writer may have made it readable by the owner alone
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `whole_file`."""
    with whole_file(path, text=True) as file:
        file.write(text)


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write a value as JSON, non-ASCII characters unescaped, as `whole_file`."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
