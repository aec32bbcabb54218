"""The engine on the played GPU, without one: the tests of generation.py, trainers.py and scoring.py in this folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which torch for CPU does not bring: pip install .[dev]")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(
        bool(torch.version.cuda or torch.version.hip),
        reason="needs torch for CPU: a build for GPUs has operations of its own for the device cuda",
    ),
]
FOLDER = Path(__file__).parent
NAMES = ["device_itself", "generation", "trainers", "scoring"]


def run(which):
    """In one process, where the device is there before torch, and triton is imported as an interpreter."""
    files = [str(FOLDER / f"{name}.py") for name in NAMES]
    plugins = ["-p", "tests.played.device", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "--tb=short", "-m", which, *files]
    done = subprocess.run(command, cwd=FOLDER.parents[1], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_the_played_gpu():
    run("not slow")


@pytest.mark.slow
def test_longer_ones_on_the_played_gpu():
    run("slow")


def test_every_file_is_run():
    files = {path.stem for path in FOLDER.glob("*.py") if "\ndef test_" in path.read_text(encoding="utf-8")}
    assert files - {"test_played"} == set(NAMES)
