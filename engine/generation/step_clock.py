"""Report the steps of a generation with their times: by the host's clock, or on a GPU by events.

On a GPU the host is ahead of the device, so its clock would measure how long a step takes to enqueue. Events are read
where the host waits for the device anyway.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Step:
    """Statistics of one step. `rows` decoded; a shared position is read once."""

    seconds: float
    rows: int
    prompt_tokens: int
    positions_read: int
    new_tokens: int
    pages: int


class StepClock:
    """Calls on_step(Step) for each step: at once on a CPU, on a GPU when `read` is called."""

    def __init__(self, device: torch.device, on_step: Callable[[Step], None]):
        self.on_step, self.on_gpu = on_step, device.type == "cuda"
        self._ended: list[tuple[torch.cuda.Event, Step]] = []
        self._began: float | torch.cuda.Event = self._now()

    def _now(self) -> float | torch.cuda.Event:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self) -> None:
        """Begin a step. What the caller does between steps is not counted on a CPU."""
        if not self.on_gpu:
            self._began = self._now()

    def end(self, rows: int, prompt_tokens: int, positions_read: int, new_tokens: int, pages: int) -> None:
        """End a step with these statistics, as in Step."""
        step, now = Step(0.0, rows, prompt_tokens, positions_read, new_tokens, pages), self._now()
        if self.on_gpu:
            self._ended.append((now, step))
        else:
            self.on_step(dataclasses.replace(step, seconds=now - self._began))

    def read(self) -> None:
        """Report the steps that have ended on the device. Waits for the newest."""
        for event, step in self._ended:
            event.synchronize()
            self.on_step(dataclasses.replace(step, seconds=self._began.elapsed_time(event) / 1e3))
            self._began = event
        self._ended = []
