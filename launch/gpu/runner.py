"""Run the cases of one stage in this process; started by launch/gpu/processes.py with one JSON argument."""

from __future__ import annotations

import json
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

import torch

from engine.device import use
from launch.gpu.lab import Lab
from launch.gpu.lines import Case
from launch.gpu.record import Record
from launch.gpu.stages import STAGES, Stage
from launch.gpu.table import case_line

AGAIN = 75  # exit status: cases are left, and need a new process
REHEARSED = "a rehearsed failure"


def run_stage(stage: Stage, lab: Lab, fails: bool = False) -> int:
    """Run the cases that have not ended, each written to the stage's file at once. Returns the exit status.

    An error ends its case, not the stage. With `fails` the first case raises one. After an error that leaves the device
    unusable, and before a case that wants a process of its own, the status is AGAIN.
    """
    record = Record(lab.folder / stage.file, {"stage": stage.number, "name": stage.name, "fake": lab.fake})
    try:
        cases = stage.cases(lab)
    except Exception as error:  # noqa: BLE001  it goes into the table
        record.fail("the stage itself", last_line(error), where=place(error))
        record.complete(True)
        return 0
    has_run = False
    for number, case in enumerate(cases):
        if record.has_ended(case.name):
            continue
        reason = why_not(case, lab) or why_not_now(case, lab)
        if reason:
            record.leave_out(case.name, reason)
            print(f"  {case.name}: left out, {reason}", flush=True)
            continue
        if has_run and case.alone and not lab.fake:
            return AGAIN
        has_run = True
        if not run_case(case, record, lab, fails and number == 0):
            return AGAIN
    record.complete(all(record.has_ended(case.name) or why_not(case, lab) for case in cases))
    return 0


def why_not(case: Case, lab: Lab) -> str | None:
    """Return why the case cannot be measured here, None if it can."""
    if case.needs and find_spec(case.needs) is None:
        return f"{case.needs} is not installed"
    if not lab.fake and case.memory_gb and case.memory_gb > (memory := torch.cuda.mem_get_info()[1] / 1e9):
        return f"it takes about {case.memory_gb:.0f} GB, this GPU has {memory:.0f}"
    return None


def why_not_now(case: Case, lab: Lab) -> str | None:
    """Return why there is no time for the case, None if there is. A rehearsal takes no time worth counting."""
    if not lab.fake and case.seconds > lab.seconds_left:
        return f"it takes about {case.seconds:.0f} s, {max(0.0, lab.seconds_left):.0f} s are left"
    return None


def run_case(case: Case, record: Record, lab: Lab, fails: bool = False) -> bool:
    """Measure one case and write what came of it. Returns whether the device can still be used."""
    record.begin(case)
    began = time.monotonic()
    try:
        if fails:
            raise RuntimeError(REHEARSED)
        measured = case.measure()
        lab.wait()
        record.end(case, measured, round(time.monotonic() - began, 2))
    except Exception as error:  # noqa: BLE001  it goes into the table
        traceback.print_exc()
        record.fail(case.name, last_line(error), where=place(error), seconds=round(time.monotonic() - began, 2))
    print(f"  {case_line(record.find(case.name), lab.fake)}", flush=True)
    try:
        lab.clean()
        lab.wait()
    except RuntimeError:  # such as an illegal address: every later call in this process would fail with it
        return False
    return True


def last_line(error: BaseException) -> str:
    """Return the last line of the traceback, cut to 300 characters."""
    return traceback.format_exception_only(error)[-1].strip().split("\n")[-1][:300] or type(error).__name__


def place(error: BaseException) -> str:
    """Return the file and line that raised the error."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"


def main(given: str) -> int:
    """Run the stage that the JSON object names: stage, folder, fake, seconds, fails."""
    told = json.loads(given)
    lab = Lab(Path(told["folder"]), told["fake"], time.monotonic() + told["seconds"])
    if not lab.fake:
        use(lab.device)  # one clear error where there is no GPU
    return run_stage(STAGES[told["stage"]], lab, told["fails"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
