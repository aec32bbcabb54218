"""Times of steps, on a CPU and on a played GPU whose work ends later than it is enqueued."""

import time

import pytest
import torch

from engine.generation.step_clock import StepClock


class Device:
    """A device that takes `seconds` for each piece of work, in order. An event ends with the work before it."""

    def __init__(self):
        self.busy_until, self.waits = 0.0, 0

    def work(self, seconds):
        self.busy_until += seconds

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = self.device.busy_until

    def synchronize(self):
        self.device.waits += 1

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


def test_steps_of_a_gpu_have_the_times_of_the_device(monkeypatch):
    device, steps = Device(), []
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    clock = StepClock(torch.device("cuda", 0), steps.append)
    for seconds in (0.5, 0.25, 2.0):
        clock.begin()
        device.work(seconds)
        clock.end(4, 0, 100, 4, 9)
    assert not steps and not device.waits, "the host must not wait before it reads"
    clock.read()
    device.work(1.0)
    clock.end(3, 7, 90, 3, 8)
    clock.read()
    assert [s.seconds for s in steps] == pytest.approx([0.5, 0.25, 2.0, 1.0])
    assert (steps[3].rows, steps[3].prompt_tokens, steps[3].positions_read, steps[3].new_tokens) == (3, 7, 90, 3)


def test_steps_of_a_cpu_are_reported_at_once_without_the_time_between(monkeypatch):
    now, steps = [10.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepClock(torch.device("cpu"), steps.append)
    for between, seconds in ((5.0, 0.5), (1.0, 0.25)):
        now[0] += between
        clock.begin()
        now[0] += seconds
        clock.end(1, 0, 1, 1, 1)
    assert [s.seconds for s in steps] == [0.5, 0.25]
