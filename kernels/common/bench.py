"""Shared by the benches: alternating timing, measured floors, peak memory, a table and a JSON line."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

BEYOND_CACHE = 512 << 20  # bytes, several times the L2 cache of any GPU


def median_s(works: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, float]:
    """Return the median seconds of each function. They run in turn, `repeats` times, after one round of warm-up.

    With turns, a machine that slows down for a while slows all of them down. On a GPU, events measure the time on the
    device, and its cache is emptied before each run.
    """
    time_one = _gpu_clock() if device == "cuda" else _host_clock
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            taken = time_one(work)
            if turn:
                seconds[name].append(taken)
    return {name: statistics.median(found) for name, found in seconds.items()}


def _host_clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _gpu_clock() -> Callable[[Callable[[], object]], float]:
    """Return a function that times one run on the device. Writing BEYOND_CACHE bytes first also hides the launch."""
    filler = torch.empty(BEYOND_CACHE, dtype=torch.int8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock(work: Callable[[], object]) -> float:
        filler.zero_()
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return clock


def gemm(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    """Return a function that computes [rows, inner] x [columns, inner]^T, the floor of a linear. Allocates once."""
    a = torch.randn(rows, inner, dtype=dtype, device=device)
    b = torch.randn(columns, inner, dtype=dtype, device=device)
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    return lambda: torch.mm(a, b.T, out=out)


def copy(elements: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    """Return a function that copies memory: the floor of an operation that reads and writes each element once."""
    a = torch.ones(elements, dtype=dtype, device=device)
    b = torch.empty_like(a)
    return lambda: b.copy_(a)


def extra_bytes(work: Callable[[], object], device: str = "cpu") -> int:
    """Return the peak bytes that `work` allocates, less the tensors it returns, measured in torch's allocator.

    Returned tensors that share memory count once. Memory that libraries allocate below torch (packing buffers of a
    product) is not seen.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before - _bytes_of(kept)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak - _bytes_of(kept)


def _bytes_of(kept: object) -> int:
    tensors = [kept] if isinstance(kept, Tensor) else [x for x in kept or () if isinstance(x, Tensor)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a text table: words aligned left, numbers right, two digits after the decimal point."""
    cells = [[f"{c:,.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    numbers = [all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numbers)).rstrip()

    return "\n".join([line(header), *(line(row) for row in cells)])


def json_line(results: object) -> str:
    """Return the results as one line of JSON, which every bench prints last, for programs."""
    return json.dumps(results, separators=(",", ":"))
