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


def run(which, files):
    """In a process of their own: triton asks for TRITON_INTERPRET while it is imported."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", which, *map(str, files)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=FOLDER.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "file", [pytest.param(f, id=f.stem, marks=[pytest.mark.slow] * (f.stem in LONG)) for f in FILES]
)
def test_kernels_in_the_interpreter(file):
    run("not slow", [file])


@pytest.mark.slow
def test_slow_kernels_in_the_interpreter():
    run("slow", FILES)
