"""Stage 1, trainers: a GPU against a CPU, ZeRO against none, and a run stopped twice against one that never was."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from engine.distributed.world import World, start_world
from launch.gpu import tiny
from launch.gpu.lab import Lab
from launch.gpu.lines import Case, Measured, right

ZEROS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
CPU_TIMEOUT_S = 240
# Set in this process by `start_world`: with them, another process would look for this one's ranks at its port.
OF_THIS_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
Rows = list[dict[str, float]]


def cases(lab: Lab) -> list[Case]:
    """Return the cases. DeepSpeed is needed for ZeRO alone: without it, one rank steps by itself."""
    work = lab.folder / "work"
    found = [
        Case(
            f"{stage}, {tiny.STEPS} steps against a CPU",
            [right("largest difference of a loss", "", 1e-4), *_first_batch(stage)],
            partial(_against_cpu, lab, work, stage), 40 if stage == "sft" else 15,
        )
        for stage in tiny.TRAINERS
    ]  # fmt: skip
    found += [
        Case(
            f"SFT with {zero} against zero0", [right("largest difference of a loss", "", 1e-5)],
            partial(_with_zero, lab, work, zero), 30, needs="deepspeed",
        )
        for zero in lab.pick(ZEROS[1:], ZEROS[2:3])
    ]  # fmt: skip
    found += [
        Case(
            f"{stage} stopped twice and resumed",
            [right("weights that differ", "", 0), right("logged numbers that differ", "", 0)],
            partial(_resumed, lab, work, stage), 20,
        )
        for stage in ("sft", "ppo")
    ]  # fmt: skip
    return found


def _first_batch(stage: str) -> list[Any]:
    if stage != "ppo":
        return []
    return [
        right("first minibatch: mean |ratio - 1|", "", 1e-5),
        right("first rollouts: |KL to the reference|", "", 1e-4),
    ]


@cache
def _world(device: torch.device) -> World:
    return dataclasses.replace(start_world(), device=device)


def train(stage: str, folder: Path, device: torch.device, zero: str = "zero0", **changes: Any) -> tuple[Any, Rows]:
    """Train in a new folder, or with `resume` in one that exists. Returns the trainer and what it logged."""
    if not changes.get("resume"):
        shutil.rmtree(folder, ignore_errors=True)
    trainer = tiny.trainer_of(stage, _world(device), folder, zero, **changes)
    trainer.train()
    return trainer, tiny.rows_of(trainer)


def _loss_difference(rows: Rows, others: Rows) -> float:
    """Return the largest difference of a loss in any step, inf if the runs have other steps or names."""
    if [row.keys() for row in rows] != [row.keys() for row in others]:
        return float("inf")
    losses = [(a[k], b[k]) for a, b in zip(rows, others) for k in a if k.startswith("loss/")]
    assert losses, "no loss was logged"
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in losses)


def _against_cpu(lab: Lab, work: Path, stage: str) -> Measured:
    """Train in float32 on the device here and on the CPU in another process: DeepSpeed takes one device a process."""
    _, rows = train(stage, work / stage, lab.device)
    expected = _cpu_rows(work, lab.fake)[stage]
    numbers = {"largest difference of a loss": _loss_difference(rows, expected)}
    if stage == "ppo":
        numbers["first minibatch: mean |ratio - 1|"] = abs(rows[0]["val/first_ratio_error"])
        numbers["first rollouts: |KL to the reference|"] = abs(rows[0]["objective/kl"])
    return Measured(numbers, {"here": rows, "CPU": expected})


def _cpu_rows(work: Path, fake: bool) -> dict[str, Rows]:
    """Return what each trainer logs on the CPU; trained once, in a process that sees no GPU."""
    file = work / "cpu.json"
    if not file.is_file():
        if fake:  # this process sees no GPU either
            train_all(work / "cpu", file)
        else:
            own = {name: value for name, value in os.environ.items() if name not in OF_THIS_RANK}
            environment = {**own, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
            command = [sys.executable, "-m", "launch.gpu.trainer_checks", str(work / "cpu"), str(file)]
            subprocess.run(command, cwd=tiny.ROOT, env=environment, check=True, timeout=CPU_TIMEOUT_S)
    return json.loads(file.read_text(encoding="utf-8"))


def train_all(folder: Path, file: Path) -> None:
    """Train every trainer on the CPU and write what they logged to the file."""
    rows = {stage: train(stage, folder / stage, torch.device("cpu"))[1] for stage in tiny.TRAINERS}
    file.write_text(json.dumps(rows), encoding="utf-8")


def _with_zero(lab: Lab, work: Path, zero: str) -> Measured:
    _, plain = train("sft", work / "zero0", lab.device)
    _, rows = train("sft", work / zero, lab.device, zero)
    return Measured({"largest difference of a loss": _loss_difference(rows, plain)}, {"zero0": plain, zero: rows})


def _resumed(lab: Lab, work: Path, stage: str) -> Measured:
    """Stop a run inside its first step, resume it and stop it in its next, resume it to its end; compare every bit."""
    whole, rows = train(stage, work / f"{stage}-whole", lab.device)
    folder = work / f"{stage}-stopped"
    shutil.rmtree(folder, ignore_errors=True)
    for turn in range(2):
        trainer = tiny.trainer_of(stage, _world(lab.device), folder, resume=turn > 0)
        tiny.stop_in_step(trainer, 1)
        try:
            trainer.train()
        except SystemExit:
            continue
        raise RuntimeError("the run did not stop after SIGTERM")
    resumed, again = train(stage, folder, lab.device, resume=True)
    weights, others = whole.zero.state_dict(), resumed.zero.state_dict()
    assert weights.keys() == others.keys() and len(rows) == len(again), "the resumed run has other weights or steps"
    return Measured({
        "weights that differ": sum(int((weights[name] != others[name]).sum()) for name in weights),
        "logged numbers that differ": sum(a[k] != b.get(k) for a, b in zip(rows, again) for k in a),
    }, {"rows": again})  # fmt: skip


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), Path(sys.argv[2]))
