"""Stage 0: versions, what is missing, and the rates from which all predictions start."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from engine.device import c_compiler, has_python_header
from launch.gpu.clock import num_buffers, time_s
from launch.gpu.lab import COPY, GEMM, Lab
from launch.gpu.lines import Case, Expected, Measured, at_least

PACKAGES = ("torch", "triton", "transformers", "deepspeed", "numpy", "tokenizers", "safetensors", "ninja")
# Data sheets: GB/s of memory, dense bf16 TFLOP/s. The first whose name is in the GPU's is taken.
SHEETS = {
    "B200": (8000, 2250), "H200": (4800, 989), "H100 PCIe": (2000, 756), "H100": (3350, 989),
    "A100-SXM4-80": (2039, 312), "A100": (1555, 312), "L40S": (864, 362), "L40": (864, 181), "L4": (300, 121),
    "A10": (600, 125), "4090": (1008, 165), "3090": (936, 71),
}  # fmt: skip
WARNINGS = "warnings"  # the details of the table's head


def cases(lab: Lab) -> list[Case]:
    sheet = next((rates for name, rates in SHEETS.items() if name in _name(lab)), None)
    bandwidth, flops = sheet or (None, None)
    copy = Expected(COPY, "GB/s", bandwidth, at_least(0.85 * bandwidth) if bandwidth else None)
    gemm = Expected(GEMM, "TFLOP/s", flops, at_least(0.6 * flops) if flops else None)
    return [
        Case("versions", [], lambda: _versions(lab), 5),
        Case("copy between buffers", [copy], lambda: _copy(lab), 5),
        Case("bf16 product of 8192 x 8192", [gemm], lambda: _gemm(lab), 5),
        Case("a node of a CUDA graph", [Expected("per node", "us", 1.5)], lambda: _node(lab), 5),
    ]


def _name(lab: Lab) -> str:
    return torch.cuda.get_device_name() if lab.device.type == "cuda" else "CPU"


def _versions(lab: Lab) -> Measured:
    found: dict[str, Any] = {"python": platform.python_version(), "CUDA of torch": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found |= {"compiler": c_compiler(), "Python.h": has_python_header(), "driver": _driver(), "GPU": _name(lab)}
    if lab.device.type == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found |= {
            "memory, GB": round(gpu.total_memory / 1e9, 1),
            "free memory, GB": round(torch.cuda.mem_get_info()[0] / 1e9, 1),
            "multiprocessors": gpu.multi_processor_count,
            "compute capability": f"{gpu.major}.{gpu.minor}",
            "L2, MB": round(getattr(gpu, "L2_cache_size", 0) / 1e6, 1),
            "shared memory per block, kB": round(getattr(gpu, "shared_memory_per_block_optin", 0) / 1e3, 1),
        }
    found["cores"] = len(os.sched_getaffinity(0))
    return Measured({}, {**found, WARNINGS: _warnings(found, lab)})


def _driver() -> str | None:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().split("\n")[0] or None


def _warnings(found: dict[str, Any], lab: Lab) -> list[str]:
    """Return a line for each thing that is missing, with what does not work without it."""
    lines = []
    if found["triton"] is None:
        lines.append("triton is missing: no kernel of ours runs on a GPU")
    if found["deepspeed"] is None:
        lines.append("deepspeed is missing: one rank trains without it, ZeRO and offload are left out")
    if found["compiler"] is None:
        lines.append("no C compiler: Triton compiles its launchers with one, and so do the kernels for CPUs")
    elif not found["Python.h"]:
        lines.append("no Python.h: Triton compiles its launchers with it (package python3-dev)")
    if lab.device.type == "cuda" and found["free memory, GB"] < 0.9 * found["memory, GB"]:
        lines.append(f"only {found['free memory, GB']} of {found['memory, GB']} GB are free: who else uses this GPU?")
    return lines


def _copy(lab: Lab) -> Measured:
    """Copy between two buffers several times larger than the L2 cache; each byte is read once and written once."""
    size = lab.pick(2 << 30, 8 << 20)
    source = torch.ones(size, dtype=torch.uint8, device=lab.device)
    target = torch.empty_like(source)
    seconds = time_s(lab, lambda: target.copy_(source))
    return Measured({COPY: seconds.map(lambda s: 2 * size / s / 1e9)}, {"bytes": size})


def _gemm(lab: Lab) -> Measured:
    """Multiply random matrices: with zeros the chip takes less power and runs faster."""
    side = lab.pick(8192, 128)
    a, b = (torch.randn(side, side, device=lab.device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    seconds = time_s(lab, lambda: torch.mm(a, b, out=out))
    return Measured({GEMM: seconds.map(lambda s: 2 * side**3 / s / 1e12)}, {"side": side})


def _node(lab: Lab) -> Measured:
    """Time the smallest kernel in a graph of many: what a launch costs at least."""
    x = torch.zeros(1, device=lab.device)
    works = [lambda: x.add_(1)] * max(lab.pick(500, 5), num_buffers(lab, 1 << 20))
    return Measured({"per node": time_s(lab, works, graph=True).map(lambda s: 1e6 * s)}, {"nodes": len(works)})
