"""Two steps of each trainer on the played GPU, by DeepSpeed: what is logged equals the CPU's; an update is counted."""

import pytest
import torch

from tests.engine.training.trainers import train
from tests.played.counts import KINDS, counting
from tests.played.device import CUDA
from tests.played.models import rank_on, trainer_on
from tests.played.records import check

CPU, FLOAT32, BFLOAT16 = torch.device("cpu"), torch.float32, torch.bfloat16
CASES = {
    "sft of the top": ("sft", "llama", FLOAT32, {}),
    "sft of all layers": ("sft", "bloom", FLOAT32, {"top_layers": "all"}),
    "reward": ("reward", "llama", FLOAT32, {}),
    "dpo": ("dpo", "bloom", FLOAT32, {}),
    "ppo, shared critic": ("ppo", "llama", FLOAT32, {}),
    "ppo, separate critic": ("ppo", "llama", FLOAT32, {"critic": "separate", "eval_every": 2}),
    "ppo of all layers": ("ppo", "llama", FLOAT32, {"top_layers": "all"}),
    "sft in bfloat16": ("sft", "llama", BFLOAT16, {}),
}
LONGER = {
    "rloo": ("ppo", "llama", FLOAT32, {"advantage": "rloo", "samples_per_prompt": 2}),
    "ppo, shared critic, bloom": ("ppo", "bloom", FLOAT32, {}),
    "ppo in bfloat16": ("ppo", "llama", BFLOAT16, {}),
    "ppo, trunk and its outputs in host memory": ("ppo", "llama", FLOAT32, {"park_trunk": True, "trunk_cache": 0.0}),
}
CASES |= LONGER


def run(case, device, folder):
    """(what train() returns, the counts of the last update)."""
    stage, family, dtype, changes = CASES[case]
    with rank_on(device) as world:
        trainer = trainer_on(world, stage, folder, family, dtype, **changes)
        updates, name = [], "update" if stage == "ppo" else "step"
        method = getattr(trainer, name)

        def counted(*arguments, **options):
            with counting() as counts:
                result = method(*arguments, **options)
            updates.append(counts)
            return result

        setattr(trainer, name, counted)
        return train(trainer), updates[-1]


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c in LONGER else ()) for c in CASES])
def test_two_steps(case, tmp_path):
    expected, _ = run(case, CPU, tmp_path / "cpu")
    found, counts = run(case, CUDA, tmp_path / "gpu")
    error = 1e-4 if CASES[case][2] == FLOAT32 else 0.05
    assert len(found["rows"]) == len(expected["rows"]) == 2
    rows = [[*result["rows"], *(row for _, row in result["measured"])] for result in (found, expected)]
    stage, _, _, changes = CASES[case]
    held_out = stage != "ppo" or "eval_every" in changes
    assert len(rows[0]) == len(rows[1]) and (len(rows[0]) > 2) is held_out
    for row, known in zip(*rows):
        assert row.keys() == known.keys()
        for name, value in known.items():
            if not name.startswith("time/"):
                assert abs(row[name] - value) <= error * max(1.0, abs(value)), (name, row[name], value)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name].cpu(), weight, atol=error, rtol=error)
    check(f"update: {case}", counts.totals(), "\n".join(f"{kind}\n{counts.describe(kind)}" for kind in KINDS))
