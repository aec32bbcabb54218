"""Stage 3: a decode step of 7B shapes: its time against the floor, its launches, and the kernels that take longest."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from engine.generation.cache_budget import pages_needed
from engine.generation.generate import Request, Step, generate
from engine.generation.kv_cache import PAGE_SIZE
from engine.generation.sampling import Sampling
from engine.generation.workspace import Workspace
from engine.models.decoder import Decoder
from launch.bench.rollout_floor import ModelCost
from launch.gpu.lab import Lab, in_ms
from launch.gpu.lines import Case, Expected, Measured, Spread, share_of_floor
from launch.gpu.models import decode_floor_s, label, on_meta, random_model, shape, weight_bytes

NO_EOS = -1
PROFILED = 4  # steps
TOP = 10  # kernels listed
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")


def cases(lab: Lab) -> list[Case]:
    """Return a case for each family and batch; one model of a family serves all its batches."""
    found, made = [], {}
    for family in ("llama", "bloom"):
        cost = ModelCost.of(on_meta(lab, family))
        for batch in lab.pick((1, 8, 64, 128), (1, 3)):
            context, new = lab.pick((512, 64), (20, 14))
            floor = decode_floor_s(lab, cost, batch, batch * (context + (new + batch - 1) / 2))
            gigabytes = (weight_bytes(cost) + cost.position_bytes * batch * (context + new + batch)) / 1e9 + 2
            expected = [
                Expected("a step", "ms", in_ms(floor), share_of_floor(0.7) if batch == 64 else None),
                Expected("launches by the host in a step", ""),
                Expected("kernels in a step", ""),
            ]
            measure = partial(_decode, lab, family, made, batch, context, new)
            name = f"{label(lab, family)}, batch {batch}, context {context}"
            found.append(Case(name, expected, measure, 20 + batch / 8, gigabytes))
    return found


def _decode(lab: Lab, family: str, made: dict[str, Decoder], batch: int, context: int, new: int) -> Measured:
    if family not in made:
        made.clear()
        lab.clean()
        made[family] = random_model(lab, family)
    model = made[family]
    vocabulary = shape(lab, family).vocab_size
    tokens = torch.randint(3, vocabulary, (batch, context), generator=torch.Generator().manual_seed(0)).tolist()
    # A step takes one prompt in, so that the first rows start long before the last: they get more tokens.
    requests = [Request(tuple(row), i, 0, new + batch - 1 - i) for i, row in enumerate(tokens)]
    workspace = Workspace((pages_needed(requests, batch) + 2) * PAGE_SIZE)  # all rows at once, whatever is free
    rollout = partial(generate, model, requests, Sampling(1.0), 0, NO_EOS, batch, workspace=workspace)
    rollout()  # its graphs and kernels are made here
    steps: list[Step] = []
    rollout(on_step=steps.append)
    full = [i for i, step in enumerate(steps) if step.rows == batch and not step.prompt_tokens]
    profiler = Profiled(lab, full[2])
    rollout(on_progress=profiler)
    return Measured({
        "a step": Spread.of([1e3 * s for s in settled([steps[i].seconds for i in full])]),
        "launches by the host in a step": profiler.launches(),
        "kernels in a step": profiler.kernels(),
    }, {"top kernels": profiler.top(), "steps": len(full)})  # fmt: skip


def settled(seconds: list[float]) -> list[float]:
    """Return the means of eight steps each, without the first two, which fill caches; all of them if there are few.

    The host reads what has ended every eighth step, so single steps differ, and the mean of eight does not.
    """
    groups = [seconds[i : i + 8] for i in range(2, len(seconds) - 7, 8)]
    return [sum(group) / 8 for group in groups] or seconds


class Profiled:
    """Called after each step of a rollout: profiles a few steps from step `first` on."""

    def __init__(self, lab: Lab, first: int):
        self.lab, self.first, self._steps = lab, first, 0
        on_gpu = [ProfilerActivity.CUDA] if lab.device.type == "cuda" else []
        self._profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu])

    def __call__(self, finished: int, new_tokens: int) -> None:
        self._steps += 1
        if self._steps == self.first:
            self.lab.wait()
            self._profiler.start()
        if self._steps == self.first + PROFILED:
            self.lab.wait()
            self._profiler.stop()

    def launches(self) -> float:
        """Return the calls of the host that start something on the device, per step; zero without one."""
        return sum(event.name.startswith(LAUNCHES) for event in self._profiler.events()) / PROFILED

    def kernels(self) -> float:
        """Return the kernels and copies that ran on the device per step; on a CPU, PyTorch's operations."""
        return sum(self._counts().values()) / PROFILED

    def top(self) -> list[dict[str, Any]]:
        """Return the names that took longest, with microseconds and calls per step."""
        times: Counter[str] = Counter()
        for event in self._mine():
            times[event.name[:120]] += self._us(event)
        counts = self._counts()
        return [
            {"name": name, "us": round(us / PROFILED, 1), "calls": counts[name] / PROFILED}
            for name, us in times.most_common(TOP)
        ]

    def _counts(self) -> Counter[str]:
        return Counter(event.name[:120] for event in self._mine())

    def _mine(self) -> list[Any]:
        on = self.lab.device.type.upper()
        return [event for event in self._profiler.events() if str(event.device_type).endswith(on)]

    def _us(self, event: Any) -> float:
        return event.time_range.elapsed_us() if self.lab.device.type == "cuda" else event.self_cpu_time_total
