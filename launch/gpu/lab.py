"""Where a case is measured: the device, real or tiny sizes, the rates of the machine, and the time that is left."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from engine.base.strict_json import read_object

T = TypeVar("T")
MACHINE = "0-machine.json"
COPY, GEMM = "copy bandwidth", "bf16 GEMM rate"  # the two measured rates that all predictions start from


@dataclass(frozen=True)
class Lab:
    """One stage's process. A fake run has tiny sizes on the CPU; what it times says nothing about a GPU."""

    folder: Path
    fake: bool
    ends_at: float  # on time.monotonic's clock

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.fake else torch.device("cuda", 0)

    def pick(self, real: T, tiny: T) -> T:
        """Return the size for this run."""
        return tiny if self.fake else real

    @property
    def seconds_left(self) -> float:
        return self.ends_at - time.monotonic()

    def rate(self, name: str) -> float | None:
        """Return the median of a rate that stage 0 measured (COPY in byte/s, GEMM in operations/s), None without it."""
        path = self.folder / MACHINE
        lines = {}
        if path.is_file():
            lines = {line["what"]: line for case in read_object(path)["cases"] for line in case["lines"]}
        measured = lines.get(name, {}).get("measured")
        return measured["median"] * {COPY: 1e9, GEMM: 1e12}[name] if measured else None

    def floor_s(self, num_bytes: float = 0.0, flops: float = 0.0) -> float | None:
        """Return the longer of the time to move these bytes and to do these operations at the measured rates, seconds.

        None if a rate that is needed was not measured.
        """
        needed = [(num_bytes, self.rate(COPY)), (flops, self.rate(GEMM))]
        needed = [(amount, rate) for amount, rate in needed if amount]
        if not needed or any(rate is None for _, rate in needed):
            return None
        return max(amount / rate for amount, rate in needed)

    def wait(self) -> None:
        """Wait for the device. Raises the error of work that failed on it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def clean(self) -> None:
        """Give back memory that no one uses."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def memory_gb(self) -> dict[str, float]:
        """Return GB allocated and reserved on the device now, and their peaks since `reset_peak`; zeros on a CPU."""
        names = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
        if self.device.type == "cpu":  # not measured
            return dict.fromkeys(names, 0.0)
        return {name: getattr(torch.cuda, name)() / 1e9 for name in names}

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of one call, with the device's work."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began


def in_ms(seconds: float | None) -> float | None:
    """Return milliseconds of seconds, None of None."""
    return None if seconds is None else 1e3 * seconds
