"""The Triton kernels, forward and backward, in Triton's interpreter: the tests of tests/kernels/interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton, which torch for CPU does not bring: pip install .[dev]")
FOLDER = Path(__file__).with_name("interpreted")
FILES = sorted(FOLDER.glob("*.py"))
LONG = ("quantised_layers",)  # layers and rollouts on top of coded_linear, which has a file of its own
PROCESSES = [
    ["attention", "attention_decode", "segment_scan"],
    ["cuda_passes", "fast_paths", "rotary"],
    ["coded_linear", "linear_logprob", "sampling"],
]


def run(which, files):
    """In a process of their own: triton asks for TRITON_INTERPRET while it is imported."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", which, *map(str, files)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=FOLDER.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("names", [*PROCESSES, pytest.param(LONG, marks=pytest.mark.slow)], ids=lambda names: names[0])
def test_kernels_in_the_interpreter(names):
    run("not slow", [FOLDER / f"{name}.py" for name in names])


def test_every_file_is_run():
    assert sorted([*LONG, *(name for names in PROCESSES for name in names)]) == [file.stem for file in FILES]


@pytest.mark.slow
def test_slow_kernels_in_the_interpreter():
    run("slow", FILES)
