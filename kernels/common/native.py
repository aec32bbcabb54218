"""C++ kernels without a build step: compiled on first use by the system's compiler, loaded with ctypes, cached.

A kernel is a small C++ file with plain `extern "C"` functions that take pointers and sizes. It includes no torch
header: it compiles in two seconds instead of a minute, and needs no ninja and no Python headers.

    lib = native.load("linear_logprob", [folder / "cpu.cpp"])      # None without a compiler: the caller runs eager code
    lib.statistics.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    lib.statistics(x_TD.data_ptr(), x_TD.shape[0], native.threads())

Declare `argtypes` for every function: without them ctypes cuts integers and addresses to 32 bits.

The library uses torch's OpenMP threads: it links to libgomp.so.1, which torch has already loaded under that name, so
there is no second thread pool. Pass `native.threads()` to `num_threads(n)` in every parallel region: otherwise a thread
that torch did not start (autograd's, a test's) takes every core.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

logger = logging.getLogger("kernels")

# Never -ffast-math: it sets flush-to-zero for the whole process, and the kernels rely on infinities.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-fopenmp")
if platform.machine() in {"x86_64", "AMD64"}:
    FLAGS += ("-mprefer-vector-width=512",)  # compilers default to 256 bits even where 512 are faster
COMPILE_LIMIT_S = 300


def load(name: str, sources: Sequence[Path]) -> ctypes.CDLL | None:
    """Return the library built from `sources`, or None where it cannot be built. Logs the outcome once per process.

    `sources` are C++ files (.cpp, compiled) and the headers they include (.h, only watched for changes). The library is
    stored in torch's extension folder. Its name contains a hash of the sources, flags, compiler and processor, so a
    change in any of them builds it again. Processes that build at the same time each write their own file and rename it
    into place.
    """
    return _load(name, tuple(Path(source) for source in sources))


def threads() -> int:
    """Return the number of threads for a parallel region: torch's."""
    return torch.get_num_threads()


@functools.cache
def _load(name: str, sources: tuple[Path, ...]) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_built(name, sources)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s runs in plain PyTorch, slower: its C++ kernel was not built (%s)", name, _reason(error))
        return None
    logger.info("%s runs in C++", name)
    return library


def _built(name: str, sources: tuple[Path, ...]) -> Path:
    # Imported here: it takes 0.1 s, and only running a kernel needs it.
    from torch.utils.cpp_extension import _get_build_directory, get_cxx_compiler

    compiler = get_cxx_compiler()
    # The compiler's macros: they name its version and every instruction set that -march=native chose.
    macros = _run([compiler, *FLAGS, "-E", "-dM", "-x", "c++", os.devnull])
    key = hashlib.sha256("\n".join([*FLAGS, macros]).encode())
    for source in sources:
        key.update(source.read_bytes())
    # torch chooses the folder, from TORCH_EXTENSIONS_DIR if set, and creates it.
    library = Path(_get_build_directory("okapi_kernels", verbose=False)) / f"{name}-{key.hexdigest()[:20]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            draft = Path(folder) / library.name
            _run([compiler, *FLAGS, *(str(s) for s in sources if s.suffix == ".cpp"), "-o", str(draft)])
            os.replace(draft, library)
    return library


def _run(command: list[str]) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=COMPILE_LIMIT_S
    ).stdout


def _reason(error: Exception) -> str:
    """Return one line: the compiler's first error, or the error message if it did not run."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = text.strip().splitlines() or [str(error)]
    return next((line for line in lines if "error" in line), lines[0])
