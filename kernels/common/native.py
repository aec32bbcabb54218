"""C++ kernels without a build step: compiled at first use by the system's compiler, loaded with ctypes, cached.

A kernel is a small C++ file with plain `extern "C"` functions that take pointers and sizes. Without torch headers it
compiles in two seconds instead of a minute, and needs neither ninja nor Python headers.

    lib = native.load("linear_logprob", [folder / "cpu.cpp"])      # None: no compiler; the caller runs its eager code
    lib.statistics.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    lib.statistics(x_TD.data_ptr(), x_TD.shape[0], native.threads())

Declare `argtypes` of every function: without them ctypes truncates integers and addresses to 32 bits.

OpenMP threads are torch's: the library links libgomp.so.1, which torch has already loaded, so there is no second pool.
Use `num_threads(n)` with `native.threads()` in every parallel region: a thread that torch did not start (of autograd or
a test) would otherwise use every core.
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

# Never -ffast-math: it turns on flush-to-zero for the whole process, and the kernels rely on infinities.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-fopenmp")
if platform.machine() in {"x86_64", "AMD64"}:
    FLAGS += ("-mprefer-vector-width=512",)  # compilers choose 256 bits by themselves even where 512 are faster
COMPILE_LIMIT_S = 300


def load(name: str, sources: Sequence[Path]) -> ctypes.CDLL | None:
    """Return the library built from `sources`, or None if it cannot be built (noted once per process).

    `sources` are C++ files (.cpp, compiled) and their headers (.h, only hashed). The library is in torch's extension
    folder under a hash of sources, flags, compiler and processor; a change of any builds again. Processes that build at
    the same time do so twice; each writes its own file and renames it.
    """
    return _load(name, tuple(Path(source) for source in sources))


def threads() -> int:
    """Number of threads of a parallel region: as many as torch's."""
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
    # Imported here: it costs a tenth of a second, and only those who run a kernel need it.
    from torch.utils.cpp_extension import _get_build_directory, get_cxx_compiler

    compiler = get_cxx_compiler()
    # What the compiler defines for this processor: its version and every instruction set that -march=native chose.
    macros = _run([compiler, *FLAGS, "-E", "-dM", "-x", "c++", os.devnull])
    key = hashlib.sha256("\n".join([*FLAGS, macros]).encode())
    for source in sources:
        key.update(source.read_bytes())
    # torch's own choice of a folder: it follows TORCH_EXTENSIONS_DIR and is made if absent.
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
    """Return one line: the compiler's first error, if it ran."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = text.strip().splitlines() or [str(error)]
    return next((line for line in lines if "error" in line), lines[0])
