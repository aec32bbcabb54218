"""Choose the device of a process, and check before any work that it can run our kernels."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from engine.base.errors import UserError

DRIVER = Path("/proc/driver/nvidia/version")


def choose_device(local_rank: int = 0) -> torch.device:
    """Return this rank's GPU, and make it the current one of the calling thread; without GPUs, the CPU.

    UserError if there are fewer GPUs than ranks on this host, or if Triton cannot compile for them.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= (count := torch.cuda.device_count()):
        raise UserError(
            f"rank {local_rank} of this host has no GPU, {count} are visible: give deepspeed --num_gpus {count}, or "
            "look at CUDA_VISIBLE_DEVICES"
        )
    check_triton()
    device = torch.device("cuda", local_rank)
    use(device)
    return device


def use(device: torch.device) -> None:
    """Make a GPU the current one of this thread: Triton launches there, and a new thread starts with GPU 0."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all that was enqueued, so that a clock on the host measures it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def be_deterministic() -> None:
    """Use only algorithms that give the same bits in every run. Call it before the GPU is used.

    PyTorch then adds up gradients of embeddings and of index_add in a fixed order, and cuBLAS gets a workspace of a
    fixed size, without which it may choose another algorithm on another stream. Our kernels have one config for each
    GPU and no atomic sums, with and without this.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # a warning names what has no such algorithm


def check_triton() -> None:
    """UserError if Triton is missing, or cannot build its driver: at first use it needs a C compiler and Python.h."""
    if importlib.util.find_spec("triton") is None:
        raise UserError("triton is not installed, which compiles our kernels for a GPU: pip install triton")
    missing = []
    if c_compiler() is None:
        missing.append("a C compiler (Debian, Ubuntu: apt install gcc)")
    if not has_python_header():
        missing.append("Python.h (Debian, Ubuntu: apt install python3-dev)")
    if missing and not _driver_is_built():
        raise UserError(f"Triton cannot compile our kernels for a GPU without {' and '.join(missing)}")


def c_compiler() -> str | None:
    """Return the path of the C compiler that Triton would find; None without one."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")))), None)


def has_python_header() -> bool:
    """Return whether Python.h is installed for this interpreter."""
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def _driver_is_built() -> bool:
    """Return whether Triton's driver works, for example from its cache."""
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception:  # noqa: BLE001  whatever a compiler, a loader or a missing file raises
        return False
    return True


def why_unseen() -> str | None:
    """Return why PyTorch does not see the GPU of this machine; None without one, or if it is hidden on purpose."""
    if torch.cuda.is_available() or not DRIVER.is_file() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built for the CPU: install it for CUDA"
    return (
        f"PyTorch {torch.__version__} needs a driver for CUDA {torch.version.cuda}, nvidia-smi shows the one that is "
        "installed: update the driver, or install PyTorch for an older CUDA"
    )
