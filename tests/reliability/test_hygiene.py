"""A long run leaks nothing: memory, descriptors and threads stay where they are, logs grow as was predicted."""

import pytest

from engine.planning.disk import disk_parts
from tests.engine.training.trainers import tiny_model
from tests.reliability.hygiene import measure, summary


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_five_hundred_steps(tmp_path, stage):
    found = summary(stage, measure(stage, 500, tmp_path / "run"), 0.0)
    # Allocators still spread out a little; one kept tensor of a step of these models has 10 kB and more.
    assert found["resident_bytes_a_step"] < 8192, found
    assert [found[f"{kind}_grown"] for kind in ("descriptors", "threads", "python threads")] == [0, 0, 0], found
    sizes = {"rollouts": 5, "tokens": 64} if stage == "ppo" else {}
    assert found["log_bytes_a_step"] <= disk_parts(stage, tiny_model("bloom"), 0, 1, 0, 1, **sizes)["logs"], found
