"""Train in processes that are killed at a chosen moment, forked from a server process that has imported everything.

The server process has no rank, process group or thread. It also imports what training imports lazily (lazy_imports.py).
So a start costs one fork, and most calls of a run belong to training.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from engine.distributed.world import start_world
from tests.engine.training.trainers import make_trainer, tiny_model, train
from tests.ranks import start_ranks

# A moment is the n-th call of a Python or C function from a file with one of these names.
PLACES = {
    "write": ("/engine/run/checkpoint_files.py", "/safetensors/torch.py"),
    "rollout": (
        "/engine/generation/generate.py",
        "/engine/generation/decode_rows.py",
        "/engine/generation/scheduler.py",
        "/engine/generation/sampling.py",
    ),
    "step": ("/torch/optim/", "/deepspeed/runtime/zero/", "/engine/training/zero.py"),
    "anywhere": ("/engine/", "/torch/optim/", "/deepspeed/runtime/", "/safetensors/"),
}
PATIENCE_S = 120
IMPORTED_BY = os.getpid()


@dataclass(frozen=True)
class Moment:
    """When to kill: on one rank at call number `at` from a place, or after `at` seconds if the place is "clock"."""

    place: str
    at: float
    rank: int = 0


def run(
    stage: str, folder: Path, ranks: int = 1, case: Mapping[str, Any] | None = None, moment: Moment | None = None
) -> bool:
    """Train on `ranks` ranks, resuming if the folder holds a run. Return whether training ended; False if killed."""
    started = multiprocessing.get_context("forkserver").Event()
    processes = start_ranks(_train, ranks, stage, folder, dict(case or {}), moment, started)
    try:
        return _watch(processes, moment, started)
    finally:
        for process in processes:
            process.kill()
            process.join()


def count(folder: Path, ranks: int) -> list[Counter[str]]:
    """Return for each rank the number of calls from each place in the last completed run, and its seconds ("clock")."""
    return [Counter(json.loads((folder / f"calls{rank}.json").read_text())) for rank in range(ranks)]


def _watch(processes: list[BaseProcess], moment: Moment | None, started: Any) -> bool:
    """Wait until all ranks end, one is killed, or the time of a "clock" moment is up. Return whether all succeeded."""
    deadline = time.monotonic() + PATIENCE_S
    if moment and moment.place == "clock":
        while not started.wait(0.01) and any(p.is_alive() for p in processes):
            assert time.monotonic() < deadline
        deadline = time.monotonic() + moment.at
    while any(p.exitcode is None for p in processes):
        if any(p.exitcode == -signal.SIGKILL for p in processes):
            return False
        if time.monotonic() > deadline:
            assert moment and moment.place == "clock", f"the ranks have not ended within {PATIENCE_S} s"
            return False
        time.sleep(0.01)
    codes = [p.exitcode for p in processes]
    assert -signal.SIGKILL in codes or not any(codes), codes  # if one was killed, the others may fail in any way
    return not any(codes)


def _train(
    stage: str,
    folder: Path,
    case: dict[str, Any],
    moment: Moment | None,
    started: Any,
) -> None:
    assert os.getppid() == IMPORTED_BY != os.getpid(), "not forked from the server process that imported everything"
    rank = int(os.environ["RANK"])
    if case.pop("bfloat16", False):
        case["model"] = tiny_model(case.get("family", "bloom")).bfloat16()
    mine = moment if moment and moment.rank == rank else None
    calls = _count_calls(mine)
    world = start_world()
    resume = (folder / "config.json").exists()
    world.barrier()
    started.set()
    began = time.monotonic()
    train(make_trainer(stage, world, folder, resume=resume, **case))
    sys.setprofile(None)
    calls["clock"] = time.monotonic() - began
    (folder / f"calls{rank}.json").write_text(json.dumps(calls))


def _count_calls(moment: Moment | None) -> Counter[str]:
    """Count the calls from each place, on every thread, and kill this process at the moment."""
    calls: Counter[str] = Counter()
    places_of: dict[Any, list[str]] = {}

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "c_call"):
            return
        places = places_of.get(frame.f_code)
        if places is None:
            file = frame.f_code.co_filename
            places = places_of[frame.f_code] = [p for p, names in PLACES.items() if any(n in file for n in names)]
        for place in places:
            calls[place] += 1
            if moment and place == moment.place and calls[place] >= moment.at:
                os.kill(os.getpid(), signal.SIGKILL)

    installed: Callable[..., None] = profile
    threading.setprofile(installed)
    sys.setprofile(installed)
    return calls
