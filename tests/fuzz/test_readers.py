"""Fuzz every reader of outside bytes: it must read a corrupted file or refuse it with a UserError of one line.

By default 100 inputs per reader. `pytest -m slow tests/fuzz` runs 10,000 new ones per reader; FUZZ_INPUTS sets another
number, -k selects a reader, and -s prints how many inputs were refused.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from tests.fuzz import datagen_files, engine_files, evaluation_files, model_files
from tests.fuzz.reader import Reader

READERS = {
    **engine_files.READERS,
    **datagen_files.READERS,
    **model_files.READERS,
    **evaluation_files.READERS,
}
FEW, MANY = 50, int(os.environ.get("FUZZ_INPUTS", "10000"))


def write_file(reader: Reader, folder: Path, data: bytes) -> Path:
    """Write the reader's file with this content, and the other files it needs. Return its path."""
    reader.prepare(folder)
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def fuzz(name: str, folder: Path, inputs: int, **how) -> None:
    reader = READERS[name]
    path, corrupted = write_file(reader, folder, b""), reader.inputs.corrupted

    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        **how,
    )
    @given(st.data())
    def reads_or_refuses(data):
        path.write_bytes(data.draw(corrupted))
        try:
            reader.read(path)
        except UserError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 2000
            counts["refused"] += 1
        else:
            counts["read"] += 1

    counts: Counter[str] = Counter()
    reads_or_refuses()
    print(f"\n{name}: {counts['refused']:,} inputs refused, {counts['read']:,} read")


@pytest.mark.parametrize("name", READERS)
def test_few_corrupted_files(name, tmp_path):
    fuzz(name, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_many_corrupted_files(name, tmp_path):
    fuzz(name, tmp_path, MANY, derandomize=False)


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(name, tmp_path):
    """If a reader refused its valid file, the corrupted ones would test little."""
    reader = READERS[name]
    reader.read(write_file(reader, tmp_path, reader.inputs.valid))
