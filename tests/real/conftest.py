"""Real models for the tests of this folder: SmolLM2 135M and Gemma 3 270M, converted once for all test processes."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import convert
from tests.real.models import PACKAGES, Loaded, gguf_file, load, shared_folder


# Gemma's 262,144 tokens take minutes on a processor without AVX-512: `pytest -m real tests/real` runs it, too.
@pytest.fixture(scope="session", params=["smollm2", pytest.param("gemma3", marks=pytest.mark.slow)])
def real(request, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Yield (name, Hugging Face directory in float32). Skip without the package."""
    name = request.param
    module, command = PACKAGES[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs a real model: {command}")
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all processes of this run

    def make(folder: Path) -> None:
        file = gguf_file(name, root)
        convert.run(["--gguf", str(file), "--output", str(folder), "--dtype", "float32"])
        if file.parent == root:
            file.unlink()
        gc.collect()

    with shared_folder(root / f"real-{name}", make) as folder:
        yield name, folder


@pytest.fixture(scope="module")
def loaded(real) -> Iterator[Loaded]:
    """Yield the model, the same in transformers, and the tokenizer. Tests do not change them."""
    yield load(*real)
    gc.collect()


@pytest.fixture(autouse=True)
def emptied(tmp_path) -> Iterator[None]:
    """Remove what a test wrote: pytest would keep gigabytes of the last three runs."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)
