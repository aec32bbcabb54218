"""Fixtures that every room's tests may use."""

from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, so that a change is judged by what it changed. New ones on every run:
# pytest --hypothesis-profile explore
settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets beside the repository; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the public data sets in ../shared/data, which are not part of this repository")
    return folder
