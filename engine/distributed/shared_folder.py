"""Check that all ranks share a file system: each sees what the first one has written."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from engine.base.errors import UserError
from engine.distributed.world import World

SEEN_WITHIN_S = 40.0  # an NFS client may cache a missing file for half a minute
LOOK_EVERY_S = 0.5


def check_shared(file: Path, world: World) -> None:
    """UserError on every rank unless all see the same file as the first. All ranks call it."""
    if world.size == 1:
        return
    written = world.gather(_digest(file))[0]
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not (same := _digest(file) == written) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    blind = [rank for rank, sees in enumerate(world.gather(same)) if not sees]
    if blind:
        raise UserError(
            f"rank {blind[0]} does not see {file} as rank 0 wrote it: give --output, or --runs, a folder on a file "
            "system that all hosts share"
        )


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
