"""Run a stage in a process of its own, start it again where it asks for that or has died, and end it at its limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from launch.gpu.record import RUNNING, Record
from launch.gpu.runner import AGAIN
from launch.gpu.stages import Stage

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 25.0  # for the case that runs when a stage's time is over


def run(stage: Stage, folder: Path, fake: bool, seconds: float, fails: bool = False) -> None:
    """Run the stage's cases until none is left or `seconds` are over. The stage's file has what came of each."""
    ends_at = time.monotonic() + seconds
    while (left := ends_at - time.monotonic()) > 0:
        before = _record(stage, folder, fake).num_ended
        status = _process(stage, folder, fake, left, fails)
        record = _record(stage, folder, fake)
        running = next((case["name"] for case in record.cases if case["state"] == RUNNING), None)
        if status == 0 or (status is None and running is None):
            return
        if status != AGAIN:
            why = f"it ran past the stage's time, {seconds:.0f} s" if status is None else f"its process ended: {status}"
            record.fail(running or "the stage itself", why)
        if status is None or (running is None and record.num_ended == before):
            record.complete(status is not None)
            return


def _record(stage: Stage, folder: Path, fake: bool) -> Record:
    return Record(folder / stage.file, {"stage": stage.number, "name": stage.name, "fake": fake})


def _process(stage: Stage, folder: Path, fake: bool, seconds: float, fails: bool) -> int | None:
    """Return the exit status of one process; None if it was ended because its time was over."""
    told = {"stage": stage.number, "folder": str(folder), "fake": fake, "seconds": seconds, "fails": fails}
    environment = dict(os.environ)
    if fake:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "launch.gpu.runner", json.dumps(told)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        return process.wait(seconds + GRACE_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
