"""Trainers that a signal stops at a chosen moment, and a console that remembers: for the tests of checkpoints."""

from __future__ import annotations

import signal

import pytest

import engine.run.checkpoint_files as files
from tests.engine.training.trainers import make_trainer, tiny_model, train


class Said:
    """A console that remembers."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def make(stage, world, folder, bfloat16=False, during_rollout=None, **changes):
    if bfloat16:
        changes["model"] = tiny_model(changes.get("family", "bloom")).bfloat16()
    return make_trainer(stage, world, folder, **{"save_every": 100, **changes})


def stop_in_rollout(trainer, rollout):
    """Send this process a signal when one response of its so-manieth rollout is there."""
    own, calls = trainer.checkpoints.raise_if_signalled, []
    trainer.collect, collect = lambda *args: (calls.append(args), collect(*args))[1], trainer.collect

    def told():
        if len(calls) == rollout:
            signal.raise_signal(signal.SIGTERM)
            trainer.checkpoints.raise_if_signalled = own
        own()

    trainer.checkpoints.raise_if_signalled = told


def stop_during(trainer, step, number=signal.SIGTERM):
    """Send this process a signal inside of its so-manieth optimizer step."""
    own, calls = trainer.zero.step, []

    def stepping(lr):
        calls.append(lr)
        if len(calls) == step:
            signal.raise_signal(number)
        return own(lr)

    trainer.zero.step = stepping


def stopped(stage, world, folder, step, during_rollout=None, **changes):
    """A run that a signal stopped after this step, on the last rank only; others must notice."""
    trainer = make(stage, world, folder, **changes)
    if world.rank == world.size - 1:
        stop_in_rollout(trainer, during_rollout) if during_rollout else stop_during(trainer, step)
    with pytest.raises(SystemExit) as stop:
        train(trainer)
    assert stop.value.code == 143
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["latest", files.name_of(step)]
