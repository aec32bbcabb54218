"""Checkpoints of the trainers: stopped and continued is never stopped, on other ranks and ZeRO stages too."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

import engine.run.checkpoint_files as files
from engine.distributed.world import start_world
from tests.engine.training.stopping import Said, make, stopped
from tests.engine.training.trainers import assert_same_rows, assert_same_weights, one_rank, train
from tests.ranks import run_ranks
from tests.reliability.remains import assert_same

# name: (stage, the optimizer step during which the signal comes, changes); PPO's 2 and 5 lie inside an iteration.
CASES = {
    "sft": ("sft", 3, {}),
    "sft-kept-trunk": ("sft", 2, {"family": "llama", "top_layers": "1"}),
    "sft-bf16": ("sft", 1, {"bfloat16": True}),
    "sft-zero2": ("sft", 2, {"zero": "zero2"}),
    "reward": ("reward", 2, {}),
    "reward-zero3-bf16": ("reward", 3, {"zero": "zero3", "bfloat16": True}),
    "dpo": ("dpo", 2, {"sft_coef": 0.3}),
    "dpo-one-epoch": ("dpo", 1, {"epochs": 1, "max_steps": None}),
    "dpo-zero3-bf16": ("dpo", 3, {"zero": "zero3", "bfloat16": True, "top_layers": "all"}),
    "ppo": ("ppo", 2, {"kl_horizon": 50.0}),
    "ppo-between-iterations": ("ppo", 4, {}),
    "ppo-in-a-rollout": ("ppo", 4, {"during_rollout": 2}),
    "ppo-separate": ("ppo", 5, {"critic": "separate", "family": "llama", "top_layers": "all"}),
    "ppo-zero3-bf16": ("ppo", 5, {"zero": "zero3", "bfloat16": True}),
    "ppo-offload": ("ppo", 3, {"zero": "zero2_offload", "critic": "separate"}),
}
ON_TWO_RANKS = {
    "sft-zero2-bf16": ("sft", 2, {"zero": "zero2", "bfloat16": True}),
    "dpo-zero2": ("dpo", 2, {"zero": "zero2", "dpo_loss": "plackett-luce"}),
    "ppo-zero3-in-a-rollout": ("ppo", 4, {"zero": "zero3", "during_rollout": 2}),
}
MORE_ON_TWO_RANKS = {
    "reward-zero3": ("reward", 3, {"zero": "zero3", "family": "llama"}),
    "ppo": ("ppo", 2, {"critic": "separate"}),
    "ppo-zero1-bf16": ("ppo", 5, {"zero": "zero1", "bfloat16": True}),
    "ppo-zero3": ("ppo", 3, {"zero": "zero3"}),
}


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def stopped_and_not(world, folder, cases):
    """Each case without interruption, and stopped and continued. Only then are they compared: ranks may wait."""
    for name, (stage, step, changes) in cases.items():
        train(make(stage, world, folder / name / "whole", **changes))
        stopped(stage, world, folder / name / "stopped", step, **changes)
        train(make(stage, world, folder / name / "stopped", resume=True, **changes))
    return world.rank


def on_ranks(folder, cases):
    return stopped_and_not(start_world(), folder, cases)


@pytest.mark.parametrize("name", CASES)
def test_resumed_run_equals_uninterrupted_run(world, tmp_path, name):
    stopped_and_not(world, tmp_path, {name: CASES[name]})
    assert_same(tmp_path / name / "stopped", tmp_path / name / "whole")


@pytest.mark.parametrize("cases", [ON_TWO_RANKS, pytest.param(MORE_ON_TWO_RANKS, marks=pytest.mark.slow)])
def test_two_ranks_resume_exactly(tmp_path, cases):
    run_ranks(on_ranks, 2, tmp_path, cases)
    for name in cases:
        assert_same(tmp_path / name / "stopped", tmp_path / name / "whole")


def stop_on_two(folder, cases):
    for name, (stage, step, changes) in cases.items():
        stopped(stage, start_world(), folder / name, step, **changes)


def test_resume_with_other_ranks_and_zero_stages(world, tmp_path):
    """Two ranks under ZeRO stop, one without goes on: as one rank would have done it all, up to the order of sums."""
    cases = {
        name: (ON_TWO_RANKS | MORE_ON_TWO_RANKS)[name] for name in ("reward-zero3", "dpo-zero2", "ppo", "ppo-zero3")
    }
    run_ranks(stop_on_two, 2, tmp_path, cases)
    for name, (stage, _, changes) in cases.items():
        changes = {**changes, "zero": "zero0"}
        whole = train(make(stage, world, tmp_path / "whole" / name, **changes))
        trainer = make(stage, world, tmp_path / name, resume=True, **changes)
        trainer.checkpoints.console = said = Said()
        rest = train(trainer)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row.pop("step")
        kept = [{key: row[key] for key in whole["rows"][0]} for row in rows if "eval/accuracy" not in row]
        assert_same_rows(kept, whole["rows"], name)
        assert_same_weights(rest["weights"], whole["weights"], 1e-6)
        assert any("2 ranks of ZeRO" in line and "1 of ZeRO-0" in line for line in said.lines), said.lines


@pytest.mark.parametrize(("before", "after"), [("zero0", "zero3"), ("zero3", "zero2"), ("zero2", "zero0")])
def test_zero_stage_changes_are_exact(world, tmp_path, before, after):
    """Masters and moments of one stage are those of the other, bit for bit; so are the weights the model reads."""
    for bfloat16 in (False, True):
        folder = tmp_path / str(bfloat16)
        stopped("sft", world, folder, 3, zero=before, bfloat16=bfloat16)
        trainer = make("sft", world, folder, zero=after, bfloat16=bfloat16, resume=True)
        assert trainer.checkpoints.restore().step == 3
        whole, _ = files.newest_whole(folder / "checkpoints")
        kept, put_back = whole.tensors(files.TRAINED), trainer.zero.keep()
        assert kept.keys() == put_back.keys()
        assert all(torch.equal(kept[name], put_back[name]) for name in kept)
        for name, weight in trainer.zero.state_dict().items():
            assert torch.equal(weight, kept[f"weight:{name}"].to(weight.dtype)), name


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_global_random_generators_are_not_used(world, tmp_path, stage):
    """So there is no generator to keep: other states of them give the same run, and training leaves them alone."""
    for seed, name in ((1, "one"), (2, "two")):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        trainer = make(stage, world, tmp_path / name)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        train(trainer)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert_same(tmp_path / "one", tmp_path / "two")
