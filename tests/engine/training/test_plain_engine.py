"""Runs on one rank without DeepSpeed: the bits of DeepSpeed's stage 0, and one line for what needs the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.base.errors import UserError
from engine.training import zero
from tests.engine.training.trainers import make_trainer, one_rank, tiny_model, train

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [("sft", torch.float32), ("sft", torch.bfloat16), ("ppo", torch.float32), ("ppo", torch.float16)],
)
def test_bits_of_deepspeed(stage, dtype, tmp_path, monkeypatch):
    """max_grad_norm is small, so that every step clips."""

    def trained(name):
        model = tiny_model("llama").to(dtype)
        with one_rank() as world:
            return train(make_trainer(stage, world, tmp_path / name, "llama", model=model, max_grad_norm=0.1))

    expected = trained("deepspeed")
    monkeypatch.setattr(zero, "HAS_DEEPSPEED", False)
    plain = trained("plain")
    assert plain["rows"] == expected["rows"] and all(row["grad_norm"] > 0.1 for row in plain["rows"])
    assert plain["weights"].keys() == expected["weights"].keys()
    assert all(torch.equal(weight, expected["weights"][name]) for name, weight in plain["weights"].items())


def test_zero_and_ranks_need_deepspeed(tmp_path, monkeypatch):
    monkeypatch.setattr(zero, "HAS_DEEPSPEED", False)
    with one_rank() as world, pytest.raises(UserError, match="ZeRO-2 needs the package deepspeed"):
        make_trainer("sft", world, tmp_path, zero="zero2")


def test_launcher_runs_where_the_package_is_missing(tmp_path):
    """SFT in a process that cannot import deepspeed; a DeepSpeed file is one line there."""
    program = f"""
import sys
sys.modules["deepspeed"] = None
from engine.init_model import init_model
from launch import sft
from tests.greetings import GREETINGS
init_model(list(GREETINGS.values()) * 2, 320, "m", family="bloom", layers=2, hidden=16, heads=2)
open("d.jsonl", "w").write('{{"instruction": "a", "input": "", "output": "b"}}\\n')
flags = ["--lang", "ne", "--model", "m", "--data", "d.jsonl", "--max-steps", "1", "--output", "run"]
sft.job(flags)
try:
    sft.job([*flags, "--overwrite", "--deepspeed_config", "{ROOT}/ds_configs/zero2.json"])
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert "UserError --deepspeed_config needs the package deepspeed, which is missing" in done.stdout
