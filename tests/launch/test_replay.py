"""--replay: rerun the batch that stopped a run from the saved weights, and name the first non-finite value."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import torch

from engine.cli.parse import main
from engine.models import load_model, save_model
from engine.text.tokenizer import load_tokenizer
from engine.training.guards import file_of, keep, read_kept
from tests.launch import small
from tests.launch.jobs import JOBS, run

ENOUGH = {"max-steps": "6", "batch-size": "2", "lr": "1e30", "warmup-steps": "0"}


@pytest.fixture
def here(good_and_bad, tmp_path, monkeypatch):
    for name in ("m", "rm", "prompts.jsonl", "rankings.jsonl"):
        (tmp_path / name).symlink_to(good_and_bad / name)
    monkeypatch.chdir(tmp_path)
    with small.alone():
        yield tmp_path


def refusal(monkeypatch, capfd, job, *argv):
    """Run a job that exits with 2 and return its error line."""
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", [f"launch/{job}.py", *argv])
    with pytest.raises(SystemExit) as stopped:
        main(JOBS[job])
    assert stopped.value.code == 2
    return capfd.readouterr().err.strip().splitlines()[-1]


def replayed(monkeypatch, capfd, job, file):
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", [f"launch/{job}.py", "--replay", str(file)])
    main(JOBS[job])
    return capfd.readouterr().out


def stopped(monkeypatch, capfd, job, changes, *more):
    """Run a job until it stops, and return the file named in its line."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, job, changes, *more)
    assert end.value.code == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert "is not finite on rank 0" in line
    return re.search(rf"python launch/{job}\.py --replay (\S+)`", line)[1]


def damaged_model(folder, spoil):
    """Write a copy of the good model with damaged weights."""
    model, tokenizer = load_model(folder / "m"), load_tokenizer(folder / "m")
    with torch.no_grad():
        spoil(model)
    save_model(model, folder / "damaged", tokenizer)


@pytest.mark.parametrize("job", ["sft", "reward", "dpo"])
def test_exploded_weights(here, monkeypatch, capfd, job):
    """The replay starts from the last good weights, saved when the run stopped."""
    file = stopped(monkeypatch, capfd, job, ENOUGH if job == "sft" else {**ENOUGH, "eval-data": "rankings.jsonl"})
    note, _ = read_kept(file)
    assert note["step"] > 1 and note["checkpoint"] == f"step-{note['step'] - 1:06d}"
    out = replayed(monkeypatch, capfd, job, file)
    assert f"Replay of step {note['step']}" in out and f"checkpoints/{note['checkpoint']}" in out
    assert "is the first value that is not finite" in out and ("layer" in out or "gradient of" in out)
    shutil.rmtree(here / "out" / "checkpoints")
    assert "is gone" in refusal(monkeypatch, capfd, job, "--replay", file)


def test_overflowing_layer(here, monkeypatch, capfd):
    """Layer 1 returns infinity: the replay names it, not the NaN that follows later."""

    def spoil(model):
        model.layers[1].qkv.bias[:] = 3e38

    damaged_model(here, spoil)
    file = stopped(monkeypatch, capfd, "sft", {"model": "damaged"})
    out = replayed(monkeypatch, capfd, "sft", file)
    assert "layer 1 is the first value that is not finite" in out
    assert "gradients in backward order: body.model" in out


def test_one_record_of_a_batch(here, monkeypatch, capfd):
    """Damage the embedding of a token in one record: the replay shows the other records as finite."""
    ids = {row["id"]: set(load_tokenizer(here / "m")(row["output"])["input_ids"]) for row in small.INSTRUCTIONS}
    only = next(iter(ids["c"] - set().union(*(tokens for name, tokens in ids.items() if name != "c"))))

    def spoil(model):
        model.embedding.weight[only] = float("inf")

    damaged_model(here, spoil)
    rows = [row for row in small.INSTRUCTIONS if row["id"] in "bcd"]
    small.write_rows(here / "some.jsonl", rows)
    file = stopped(monkeypatch, capfd, "sft", {"model": "damaged", "data": "some.jsonl", "top-layers": "1"})
    out = replayed(monkeypatch, capfd, "sft", file)
    assert "1 weights are not finite before the replay: embedding.weight" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("  ") and line.split()}
    assert lines["c"][3] in ("inf", "nan")


def bad_when_long(prompt: str, response: str) -> float:
    return 1.0


@pytest.mark.parametrize("rewards", [[], ["--reward", "rm:0.5"]])
def test_ppo(here, monkeypatch, capfd, rewards):
    """Replay kept rollouts of a policy that explodes in its second update; the critic may start as a reward model."""
    argv = {**ENOUGH, "reward": "tests.launch.test_replay:bad_when_long", "max-new-tokens": "6"}
    file = stopped(monkeypatch, capfd, "ppo", argv, "--critic", "separate", *rewards)
    out = replayed(monkeypatch, capfd, "ppo", file)
    assert "is the first value that is not finite" in out and "policy loss" in out and "kept" in out


def test_low_rank_factors(here, monkeypatch, capfd):
    """The replay trains the factors, as the run did: their gradients are those shown."""
    file = stopped(monkeypatch, capfd, "sft", ENOUGH, "--lora-rank", "2")
    assert "is the first value that is not finite" in replayed(monkeypatch, capfd, "sft", file)
    note, tensors = read_kept(file)
    healthy = file_of(here / "out", 1, 3)
    assert keep(healthy, {**note, "checkpoint": None, "step": 1}, tensors) is None
    assert "largest gradients: factors." in replayed(monkeypatch, capfd, "sft", healthy)


def test_all_is_finite(here, monkeypatch, capfd):
    """If the bad gradient came from elsewhere, the replay says so and prints the largest gradients."""
    file = stopped(monkeypatch, capfd, "sft", ENOUGH)
    note, _ = read_kept(file)
    healthy = file_of(here / "out", 1, 3)
    _, tensors = read_kept(file)
    assert keep(healthy, {**note, "checkpoint": None, "step": 1}, tensors) is None
    out = replayed(monkeypatch, capfd, "sft", healthy)
    assert "all is finite here" in out and "largest gradients: body.model." in out and "the initial ones" in out


@pytest.mark.parametrize("change", [
    {"stage": "reward"}, {"settings": {"lang": "ne"}}, {"settings": {"lang": 7, "model": [], "max_length": "x"}},
    {"ids": ["a"]}, {"ids": [1, 2]}, {"checkpoint": "../../m"}, {"checkpoint": 5}, {"step": 9},
])  # fmt: skip
def test_files_that_cannot_be_replayed(here, monkeypatch, capfd, change):
    tensors = {
        "tokens_T": torch.tensor([5, 6, 7, 8, 2]), "lengths_S": torch.tensor([3, 2]),
        "prompt_len_S": torch.tensor([1, 1]),
    }  # fmt: skip
    settings = {
        "lang": "ne", "model": "m", "batch_size": 2, "epochs": 1, "max_length": 64, "tokens_per_microbatch": 64,
    }  # fmt: skip
    note = {"stage": "sft", "step": 1, "rank": 0, "quantity": "the loss", "settings": settings, "ids": ["a", "b"]}
    assert keep(here / "good.safetensors", note, tensors) is None
    assert "all is finite here" in replayed(monkeypatch, capfd, "sft", here / "good.safetensors")
    assert keep(here / "bad.safetensors", json.loads(json.dumps({**note, **change})), tensors) is None
    line = refusal(monkeypatch, capfd, "sft", "--replay", "bad.safetensors")
    assert line.startswith("error: ") and "bad.safetensors" in line or "batch" in line


def test_replay_takes_no_other_flags(here, monkeypatch, capfd):
    assert "--replay takes a file and no other flag" in refusal(
        monkeypatch, capfd, "ppo", "--replay", "x", "--lang", "ne"
    )
    assert "--replay takes a file and no other flag" in refusal(monkeypatch, capfd, "ppo", "--replay")
    assert "cannot be read" in refusal(monkeypatch, capfd, "ppo", "--local_rank=0", "--replay=absent")
