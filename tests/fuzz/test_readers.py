"""Every reader of outside bytes, given spoilt ones: it reads them or says in one line why not, and raises nothing else.

A hundred inputs each by default. Ten thousand each, new ones every time: `pytest -m slow tests/fuzz`; another number
by FUZZ_INPUTS, one reader by -k; -s says how many were refused.
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
FEW, MANY = 100, int(os.environ.get("FUZZ_INPUTS", "10000"))


def written(reader: Reader, folder: Path, data: bytes) -> Path:
    """The reader's file with this in it, among whatever else belongs there."""
    reader.prepare(folder)
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def fuzz(name: str, folder: Path, inputs: int, **how) -> None:
    reader = READERS[name]
    path, spoilt = written(reader, folder, b""), reader.inputs.spoilt

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
        path.write_bytes(data.draw(spoilt))
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
def test_a_few_spoilt_files(name, tmp_path):
    fuzz(name, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_many_spoilt_files(name, tmp_path):
    fuzz(name, tmp_path, MANY, derandomize=False)


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(name, tmp_path):
    """Otherwise no spoilt one would come far."""
    reader = READERS[name]
    reader.read(written(reader, tmp_path, reader.inputs.good))
