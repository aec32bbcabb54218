"""Tests that a long run leaks no memory, descriptors or threads, and that its logs grow as predicted."""

import pytest

from engine.planning.disk import disk_parts
from tests.engine.training.trainers import tiny_model
from tests.reliability.hygiene import measure, summary


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_500_steps_leak_nothing(tmp_path, stage):
    found = summary(stage, measure(stage, 500, tmp_path / "run"), 0.0)
    # Allocators still grow a little. Leaking one tensor per step would cost at least 10 kB with these models.
    assert found["resident_bytes_a_step"] < 8192, found
    assert max(found[f"{kind}_grown"] for kind in ("descriptors", "threads", "python threads")) <= 0, found
    sizes = {"rollouts": 5, "tokens": 64} if stage == "ppo" else {}
    assert found["log_bytes_a_step"] <= disk_parts(stage, tiny_model("bloom"), 0, 1, 0, 1, **sizes)["logs"], found
