"""C++ built on first use: it runs, a changed source builds anew, and without a compiler there is one clear line."""

import ctypes
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.common import native

ROOT = Path(__file__).resolve().parents[3]
SOURCE = """
#include "number.h"
#include <cstdint>
extern "C" int64_t add_number(const int64_t* x, int64_t n, int threads) {
    int64_t total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) total += x[i];
    return total + NUMBER;
}
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    (tmp_path / "add.cpp").write_text(SOURCE)
    (tmp_path / "number.h").write_text("#define NUMBER 7\n")
    native._load.cache_clear()
    yield [tmp_path / "add.cpp", tmp_path / "number.h"]
    native._load.cache_clear()


def add_number(lib):
    lib.add_number.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    lib.add_number.restype = ctypes.c_int64
    x = torch.arange(100)
    return lib.add_number(x.data_ptr(), 100, native.threads())


def test_builds_runs_and_is_kept(sources, tmp_path):
    assert add_number(native.load("add", sources)) == 4950 + 7
    native._load.cache_clear()
    assert add_number(native.load("add", sources)) == 4950 + 7
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 1
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith("tmp")]


def test_a_changed_header_builds_anew(sources):
    assert add_number(native.load("add", sources)) == 4957
    native._load.cache_clear()
    sources[1].write_text("#define NUMBER 8\n")
    assert add_number(native.load("add", sources)) == 4958


def openmp_libraries():
    """Those in this process: torch's, and what other packages brought (sentencepiece has one of its own)."""
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if "gomp" in line or "iomp" in line}


def test_it_brings_no_second_openmp(sources):
    """A pool of threads beside torch's would spin against it."""
    before = openmp_libraries()
    add_number(native.load("add", sources))
    assert openmp_libraries() == before and any("torch" in name for name in before)


def test_a_compile_error_is_one_line_said_once(sources, caplog):
    sources[0].write_text("extern int broken(;\n")
    with caplog.at_level(logging.WARNING, "kernels"):
        assert native.load("add", sources) is None
        assert native.load("add", sources) is None
    (record,) = caplog.records
    assert "add runs in plain PyTorch" in record.getMessage() and "error" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_without_a_compiler_there_is_no_library(sources, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING, "kernels"):
        assert native.load("add", sources) is None
    assert "no-such-compiler" in caplog.text


def test_processes_that_build_at_once_agree(sources, tmp_path):
    """Started together; not forked: a child of a process whose OpenMP threads run would wait for threads it lacks."""
    code = (
        "import sys; from pathlib import Path; from kernels.common import native; "
        "from tests.kernels.common.test_native import *; "
        'print(add_number(native.load("add", [Path(p) for p in sys.argv[1:]])))'
    )
    command = [sys.executable, "-c", code, *map(str, sources)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["4957"] * 2
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 1
