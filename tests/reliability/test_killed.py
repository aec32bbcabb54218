"""Tests that a run killed at any moment and resumed equals one never killed: weights, optimizer, metrics, samples."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.killing import Moment, count, run
from tests.reliability.remains import assert_same

STAGES = ("sft", "reward", "dpo", "ppo")
# PPO takes eight optimizer steps in two iterations, so checkpoints at steps 3 and 6 fall inside an iteration.
SAVE_EVERY = {"sft": 2, "reward": 2, "dpo": 2, "ppo": 3}
KILLS = 25


def killed_and_resumed(stage: str, folder: Path, kills: int, ranks: int = 1, seed: int = 0, **case: Any) -> None:
    """Kill runs at `kills` moments, up to two per run, and compare the outputs with those of an uninterrupted run."""
    case["save_every"], rng = SAVE_EVERY[stage], random.Random(f"{seed} {stage} {ranks} {case}")
    began = time.monotonic()
    assert run(stage, folder / "whole", ranks, case)
    calls = count(folder / "whole", ranks)
    places = ["write", "step", *(["rollout"] if stage == "ppo" else []), "anywhere", "clock"]
    done, hit = 0, Counter()
    while done < kills:
        path, died = folder / "killed", 0
        while died < 2:
            place, rank = places[done % len(places)], rng.randrange(ranks)
            if place == "write":
                rank = 0  # only rank 0 writes
            at = rng.random() * calls[rank][place]
            if run(stage, path, ranks, case, Moment(place, at, rank)):
                break
            died, done, hit = died + 1, done + 1, hit + Counter([place])
        assert died < 2 or run(stage, path, ranks, case)
        assert_same(path, folder / "whole")
        shutil.rmtree(path)
    places_hit = ", ".join(f"{place} {count}" for place, count in hit.items())
    seconds = time.monotonic() - began
    print(f"{stage}, ranks {ranks}, {case.get('zero', 'zero0')}: {done} kills ({places_hit}), {seconds:.0f} s")


@pytest.mark.parametrize("stage", ["sft", "ppo", *(pytest.param(s, marks=pytest.mark.slow) for s in ("reward", "dpo"))])
def test_few_kills(tmp_path, stage):
    killed_and_resumed(stage, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("zero", ["zero0", "zero2", "zero3"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_many_kills(tmp_path, stage, ranks, zero):
    killed_and_resumed(stage, tmp_path, KILLS, ranks, zero=zero)
