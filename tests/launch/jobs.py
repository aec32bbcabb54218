"""Helpers: valid flags of each job, of which a test changes one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from engine.cli.parse import main
from launch import dpo, ppo, pretrain, reward, sample, sft

JOBS = {
    "sft": sft.job,
    "reward": reward.job,
    "dpo": dpo.job,
    "ppo": ppo.job,
    "pretrain": pretrain.job,
    "sample": sample.job,
}
TRAINERS = ("sft", "reward", "dpo", "ppo")
ON_RANKINGS = ("reward", "dpo")
ALL = (*TRAINERS, "sample")
SHORT = {"template": "plain", "max-length": "64"}
# Valid flags: an error then comes from the one flag that a test changes.
GOOD = {
    "sft": {"data": "prompts.jsonl", "output": "out", "max-steps": "1", **SHORT},
    "reward": {"data": "rankings.jsonl", "output": "out", "max-steps": "1", "heldout": "0.4", **SHORT},
    "dpo": {"data": "rankings.jsonl", "output": "out", "max-steps": "1", "heldout": "0.4", **SHORT},
    "ppo": {
        "data": "prompts.jsonl", "output": "out", "max-steps": "1", "reward": "rm", "top-layers": "1",
        "max-new-tokens": "8", **SHORT,
    },
    "pretrain": {"data": "text.txt", "output": "out", "max-steps": "1", "max-length": "32", "batch-size": "2"},
    "sample": {"data": "prompts.jsonl", "output": "out.jsonl", "max-new-tokens": "8", **SHORT},
}  # fmt: skip


def argv_of(job, changes):
    flags = {"lang": "ne", "model": "m", **GOOD[job], **changes}
    return [word for name, value in flags.items() if value is not None for word in (f"--{name}", value)]


def run(monkeypatch, job, changes, *more):
    monkeypatch.setattr(sys, "argv", [f"launch/{job}.py", *argv_of(job, changes), *more])
    main(JOBS[job])


def everything(folder):
    """Return path and content of each file, following links, and the entries of the folder."""
    paths = [Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}, sorted(folder.iterdir())


def assert_says(line, *words):
    for word in words:
        assert word in line, line


def cases(*rows):
    """Expand rows of (jobs, changes, *words in the error line) to one parameter set per job."""
    return [
        pytest.param(job, changes, words, id=f"{job}-{' '.join(map(str, changes.values()))}"[:60])
        for jobs, changes, *words in rows
        for job in jobs
    ]
