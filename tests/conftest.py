"""Fixtures and hypothesis profiles for all tests."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

# "fixed" draws the same examples on every run, so that only a code change can change a result. New examples on every
# run: pytest --hypothesis-profile explore. Neither has a deadline: a busy machine is not a mistake.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("fixed")


def pytest_configure(config):
    """Hide the GPUs: tests compare with a CPU, to the bit, and start more ranks than a machine may have GPUs.

    `pytest -m gpu` runs the tests that need one.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish():
    """Exempt all imported modules from garbage collection. ZeRO-3 starts a full one for each engine."""
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of public data sets beside the repository; skip the test if it does not exist."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the public data sets in ../shared/data, which are not part of this repository")
    return folder
