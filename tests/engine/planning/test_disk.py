"""The disk a run takes: predicted no less than it takes and not much more, and refused before the start."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from engine.base.errors import UserError
from engine.planning.disk import disk_line, disk_parts, kept_tokens, num_trained
from engine.settings import split_of
from tests.engine.training.trainers import make_trainer, one_rank, tiny_model, train


def size_of(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


REWARDS = [f"tests.engine.training.trainers:share_of_even_words{more}" for more in ("", "_plus_5:0.5")]


@pytest.mark.parametrize(
    ("stage", "more"),
    [("sft", {}), ("reward", {}), ("dpo", {}), ("ppo", {}), ("ppo", {"reward": REWARDS, "score_norm": "rollouts"})],
)
def test_what_is_predicted_is_taken(tmp_path, stage, more):
    with one_rank() as world:
        changes = {**more, "save_every": 1, "keep": 2, "max_steps": 4, "epochs": 4}
        trainer = make_trainer(stage, world, tmp_path / "run", **changes)
        model = trainer.model
        train(trainer)
    split = 1 if stage != "sft" else None
    rollouts, tokens = (5, 64) if stage == "ppo" else (0, 0)
    parts = disk_parts(
        stage, model, num_trained(model, split), 4, 1, 2, rollouts, tokens, rewards=len(more.get("reward", [""]))
    )
    taken = {
        "checkpoints": size_of(tmp_path / "run" / "checkpoints"),
        "model": sum(p.stat().st_size for p in (tmp_path / "run" / "model").glob("*.safetensors")),
        "logs": size_of(tmp_path / "run" / "tb") + sum(p.stat().st_size for p in (tmp_path / "run").glob("*.jsonl")),
    }
    overhead = {
        "checkpoints": 30_000,
        "model": 10_000,
        "logs": 1_000,
    }  # of state and headers: no tensor of these is large
    for name, size in taken.items():
        assert size <= parts[name] + overhead[name], (name, size, parts[name])
        assert size >= 0.3 * parts[name], (name, size, parts[name])


@pytest.mark.parametrize("family", ["bloom", "llama"])
@pytest.mark.parametrize("top", ["1", "2", "all"])
def test_trained_weights_are_those_that_get_a_gradient(tmp_path, family, top):
    with one_rank() as world:
        trainer = make_trainer("sft", world, tmp_path / "run", family=family, top_layers=top)
        count = sum(p.numel() for p in trainer.zero.trained.values())
    model = tiny_model(family)
    assert num_trained(model, split_of(top, 3)) == count


def test_tokens_of_a_kept_trunk():
    model = tiny_model("bloom")  # rows of 128 bytes
    assert kept_tokens([10, 20], model, 1, 16.0) == 0
    assert kept_tokens([10, 20], model, 2, 16.0) == 30
    assert kept_tokens([10, 20], model, 2, 12 * 128 / 1e9) == 12


def test_too_little_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2_000_000))
    parts = {"checkpoints": 1.5e6, "model": 5e5, "logs": 0.0}
    with pytest.raises(UserError, match=r"may take 2.1 MB \(checkpoints 1.5 MB, model 500 kB\), 2 MB are free at"):
        disk_line(parts, tmp_path / "new" / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(bytes(200_000))  # of the run that is continued or replaced
    assert disk_line(parts, tmp_path / "run") == "up to 2.1 MB (checkpoints 1.5 MB, model 500 kB); 2 MB free"
