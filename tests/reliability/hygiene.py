"""Measure what a long training run leaks in one process: memory, descriptors, threads, logs. Prints a table and JSON.

    python -m tests.reliability.hygiene [--steps 500] [--stage ppo]

Trains a tiny model with checkpoints, samples, scores and TensorBoard. The slopes are least squares fits over the last
four fifths of the steps, after the allocators have warmed up.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from engine.cli.console import Console
from tests.engine.training.trainers import make_trainer, one_rank, train

LONG = {
    "sft": {"epochs": 10**4},
    "reward": {"epochs": 10**4},
    "dpo": {"epochs": 10**4},
    "ppo": {"epochs": 10**4, "ppo_epochs": 1, "minibatch_size": 5},
}


def resources(folder: Path) -> dict[str, int]:
    """Return current resident bytes, open descriptors, threads (all, and Python's), and bytes of logs."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    logs = [*folder.glob("*.jsonl"), *folder.glob("tb/*")]
    return {
        "resident": resident_pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "python threads": threading.active_count(),
        "logs": sum(p.stat().st_size for p in logs),
    }


def measure(stage: str, steps: int, folder: Path) -> list[dict[str, int]]:
    """Train `steps` steps (PPO: iterations) and return the resources in use after each."""
    with one_rank() as world:
        trainer = make_trainer(stage, world, folder, max_steps=steps, save_every=steps // 10, **LONG[stage])
        log, rows = trainer.run.log, []

        def logged(*args: Any) -> None:
            log(*args)
            trainer.run.rows.clear()  # a test's run keeps its rows in memory
            rows.append(resources(folder))

        trainer.run.log = logged
        train(trainer)
    return rows


def summary(stage: str, rows: Sequence[Mapping[str, int]], seconds: float) -> dict[str, float]:
    """Return slopes over the last four fifths of the rows, and how much the number of open resources grew."""
    late = rows[len(rows) // 5 :]
    slope = {key: linear_regression(range(len(late)), [r[key] for r in late]).slope for key in ("resident", "logs")}
    tenth = max(1, len(late) // 10)
    return {
        "stage": stage, "steps": len(rows), "seconds": round(seconds, 1),
        "resident_mb": round(late[-1]["resident"] / 1e6, 1),
        "resident_bytes_a_step": round(slope["resident"], 1),
        "resident_mb_first_to_last_tenth": round(
            (median(r["resident"] for r in late[-tenth:]) - median(r["resident"] for r in late[:tenth])) / 1e6, 3
        ),
        "log_bytes_a_step": round(slope["logs"], 1),
        **{f"{key}_grown": late[-1][key] - late[0][key] for key in ("descriptors", "threads", "python threads")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--stage", choices=list(LONG), default="ppo")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        rows = measure(arguments.stage, arguments.steps, Path(folder, "run"))
        result = summary(arguments.stage, rows, time.monotonic() - began)
    Console().table(["", arguments.stage], [[name.replace("_", " "), str(value)] for name, value in result.items()])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
