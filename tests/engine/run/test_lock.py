"""The lock of a run's folder: one process writes, however it ends the next one can, and nothing is removed under it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from engine.base.errors import UserError
from engine.run.folder import Run
from engine.run.lock import Lock
from tests.engine.training.trainers import one_rank, settings

HOLDS = """
import sys, time
from pathlib import Path
from engine.run.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def another_process(folder):
    """Another process that holds the lock of the folder, killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def run_of(folder, world, **changes):
    return Run(folder, "sft", settings("sft", **changes), world)


def unfinished_run(folder, world):
    """A run that has written a line and a checkpoint, and whose process has ended."""
    run = run_of(folder, world)
    run.start()
    run.log(1, {"loss": 1.0})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "weights").write_text("1")
    run._lock.release()


def test_one_process_holds_it_and_a_killed_one_leaves_it(tmp_path):
    with another_process(tmp_path) as process:
        with pytest.raises(UserError, match=f"is being written by process {process.pid} on "):
            Lock(tmp_path).take()
        with pytest.raises(UserError, match=f"is being written by process {process.pid} on "):
            Lock(tmp_path).check()
        process.send_signal(signal.SIGKILL)
        process.wait()
        lock = Lock(tmp_path)
        lock.take()
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    lock.release()
    assert (tmp_path / "lock").read_text() == ""


def test_a_process_may_take_what_it_holds(tmp_path):
    first, second = Lock(tmp_path), Lock(tmp_path)
    first.take()
    first.check()
    second.check()
    second.take()


@pytest.mark.parametrize("changes", [{}, {"resume": True}, {"overwrite": True}])
def test_a_run_that_another_process_writes_is_left_alone(tmp_path, changes):
    folder = tmp_path / "out"
    with one_rank() as world:
        unfinished_run(folder, world)
        before = sorted(folder.rglob("*"))
        with another_process(folder):
            for act in (Run.finished_before, Run.start):
                with pytest.raises(UserError, match="is being written by process [0-9]+ on .*: wait until it ends"):
                    act(run_of(folder, world, **changes))
        assert sorted(folder.rglob("*")) == before


def test_overwrite_removes_what_was_there_and_keeps_the_lock(tmp_path):
    folder = tmp_path / "out"
    with one_rank() as world:
        unfinished_run(folder, world)
        run = run_of(folder, world, overwrite=True)
        assert not run.finished_before()
        run.start()
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "lock"]
        held = subprocess.run([sys.executable, "-c", HOLDS, str(folder)], capture_output=True, text=True, timeout=60)
        assert f"is being written by process {os.getpid()} on " in held.stderr


def test_a_finished_run_gives_the_lock_back(tmp_path):
    with one_rank() as world:
        run = run_of(tmp_path / "out", world)
        run.start()
        run.finish({"loss": 1.0})
        with another_process(tmp_path / "out"), pytest.raises(UserError, match="is being written by"):
            run_of(tmp_path / "out", world).finished_before()
        assert run_of(tmp_path / "out", world).finished_before()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    Lock(tmp_path).take()
