"""A step of a real run: what is logged, and how a signal reaches its process."""

import json
import os
import signal
import subprocess
import sys

import pytest

from engine.base.errors import UserError
from launch.real.step import ROOT, Step, run

SAVES = """
import signal, sys, time
signal.signal(signal.{name}, lambda *_: (open(r"{folder}/saved", "w").close(), sys.exit({status})))
print("ready", flush=True)
time.sleep(60)
"""
RUNS = """
from pathlib import Path
from launch.real.step import Step, run
run(Step("sft", ("-c", {child!r}), Path("never")), Path(r"{folder}/steps.jsonl"))
"""


def logged(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stopped_step_saves_before_the_command_ends_and_its_time_counts(tmp_path, name, status):
    child = SAVES.format(name=name, folder=tmp_path, status=status)
    command = [sys.executable, "-c", RUNS.format(child=child, folder=tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    if name == "SIGTERM":
        process.send_signal(signal.SIGTERM)  # as a scheduler does, to the command alone
    else:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=30)
    assert process.returncode == status and (tmp_path / "saved").exists()
    assert said == "sft was stopped: the same command goes on from here\n"
    (entry,) = logged(tmp_path)
    assert entry["status"] == status and entry["seconds"] > 0


def test_a_step_that_fails_ends_the_run_with_one_line_and_its_time_counts(tmp_path):
    with pytest.raises(UserError, match="sft ended with status 2: see its last line above"):
        run(Step("sft", ("-c", "raise SystemExit(2)"), tmp_path / "never"), tmp_path / "steps.jsonl")
    (entry,) = logged(tmp_path)
    assert entry["status"] == 2 and not entry["resumed"]


def test_a_step_whose_folder_exists_is_resumed(tmp_path):
    step = Step("sft", ("-c", "import sys; assert sys.argv[1:] == ['--resume']"), tmp_path / "never", resume=tmp_path)
    run(step, tmp_path / "steps.jsonl")
    (entry,) = logged(tmp_path)
    assert entry["status"] == 0 and entry["resumed"]
