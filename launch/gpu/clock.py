"""Time short work on the device: CUDA events around loops or graph replays, after a warm-up; the clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from engine.generation.decode_graphs import capture_on_cuda
from launch.gpu.lab import Lab
from launch.gpu.lines import Spread

Work = Callable[[], object]
WARM_UPS = 2
SAMPLE_S = 0.02  # at least so long is one measurement: a few microseconds of one event do not show in it
MOST_S = 3.0  # of all measurements together


def time_s(lab: Lab, works: Work | Sequence[Work], repeats: int = 20, graph: bool = False) -> Spread:
    """Return the spread of the seconds of one call.

    Of several works, which do the same on buffers of their own, all run in turn, so that no input is still in the L2
    cache. With `graph` they are captured in one CUDA graph and replayed: the time is the device's, without the host's
    launches. Raises RuntimeError where capturing fails.
    """
    works = [works] if callable(works) else list(works)
    for _ in range(WARM_UPS):
        for work in works:
            work()
    if lab.device.type == "cpu":
        return _on_cpu(works, repeats)
    run = _captured(works) if graph else lambda: [work() for work in works]
    once = _sample_s(run, 1) / len(works)
    rounds = max(1, round(SAMPLE_S / (once * len(works))))
    repeats = max(3, min(repeats, int(MOST_S / (once * len(works) * rounds))))
    return Spread.of([_sample_s(run, rounds) / (len(works) * rounds) for _ in range(repeats)])


def _on_cpu(works: Sequence[Work], repeats: int) -> Spread:
    seconds = []
    for i in range(min(repeats, 3)):
        began = time.perf_counter()
        works[i % len(works)]()
        seconds.append(time.perf_counter() - began)
    return Spread.of(seconds)


def _sample_s(run: Work, rounds: int) -> float:
    """Return the seconds between two events around so many calls."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(rounds):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def _captured(works: Sequence[Work]) -> Work:
    """Return the replay of a CUDA graph of all works. What they return is freed at once: the graph keeps its memory."""

    def run() -> None:
        for work in works:
            work()

    return capture_on_cuda()(run)[0]


def num_buffers(lab: Lab, bytes_each: int) -> int:
    """Return how many buffers of this size exceed the L2 cache three times, at least one and at most 64."""
    if lab.device.type == "cpu":
        return 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(64, max(1, -(-3 * cache // max(1, bytes_each))))
