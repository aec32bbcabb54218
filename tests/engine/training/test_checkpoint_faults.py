"""Checkpoints of the trainers when something is wrong: signals, other settings, damage, a full disk, a slow one."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

import engine.run.checkpoint_files as files
from engine.base.errors import UserError
from engine.training.checkpoint import fingerprint
from engine.training.metrics import Metrics
from tests.engine.training.stopping import Said, make, stop_during, stop_in_rollout, stopped
from tests.engine.training.trainers import one_rank, prompts, sft_examples, tiny_model, train
from tests.reliability.remains import assert_same


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def test_signal_saves_and_exits(world, tmp_path):
    """SIGINT exits with 130; a second one at once; afterwards the handlers are the old ones."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = make("sft", world, tmp_path / "one")
    stop_during(trainer, 1, signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 130
    trainer = make("sft", world, tmp_path / "two")
    with pytest.raises(KeyboardInterrupt), trainer.checkpoints:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_signal_in_first_rollout_saves_nothing(world, tmp_path):
    trainer = make("ppo", world, tmp_path)
    stop_in_rollout(trainer, 1)
    trainer.checkpoints.console = said = Said()
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 143
    assert said.lines == ["SIGTERM: no step was taken yet, there is nothing to save"]
    assert not (tmp_path / "checkpoints").exists()


def test_save_every_and_keep(world, tmp_path):
    train(make("ppo", world, tmp_path / "run", save_every=1, keep=3))
    there = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert there == ["latest", "step-000006", "step-000007", "step-000008"]
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-000008\n"
    states = [json.loads((tmp_path / "run" / "checkpoints" / name / "state.json").read_text()) for name in there[1:]]
    assert [(s["trainer"]["iteration"], s["trainer"]["updates"]) for s in states] == [(1, 2), (1, 3), (2, 0)]
    train(make("sft", world, tmp_path / "none", save_every=0))
    assert not (tmp_path / "none" / "checkpoints").exists()


def test_resume_without_checkpoints_starts_from_the_beginning(world, tmp_path):
    """Lines of an attempt that left no checkpoint go."""
    train(make("sft", world, tmp_path / "whole"))
    trainer = make("sft", world, tmp_path / "run")
    trainer.step(0)
    trainer = make("sft", world, tmp_path / "run", resume=True)
    trainer.checkpoints.console = said = Said()
    train(trainer)
    assert said.lines == [f"{tmp_path / 'run' / 'checkpoints'} holds no checkpoint: the run starts from the beginning"]
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(("changes", "words"), [
    ({"lr": 0.5}, "lr 0.003 -> 0.5"),
    ({"seed": 3, "epochs": 4}, "seed 0 -> 3; epochs 2 -> 4"),
    ({"max_steps": 4}, "max_steps 5 -> 4; steps 5 -> 4"),
    ({"data": sft_examples(seed=8)}, "tokens '"),
    ({"model": tiny_model("bloom", seed=9)}, "weights '"),
    ({"bfloat16": True}, "dtype 'float32' -> 'bfloat16'"),
])  # fmt: skip
def test_changed_settings_are_refused_unless_overridden(world, tmp_path, changes, words):
    stopped("sft", world, tmp_path, 2)
    with pytest.raises(UserError, match=r"step-000002 was made with other settings .*or --override") as refused:
        make("sft", world, tmp_path, resume=True, **changes).train()
    assert words in str(refused.value)
    if "bfloat16" not in changes:
        trainer = make("sft", world, tmp_path, resume=True, override=True, **changes)
        trainer.checkpoints.console = said = Said()
        trainer.train()
        assert any(words in line for line in said.lines), said.lines


def test_other_model_or_rollouts_are_refused(world, tmp_path):
    stopped("ppo", world, tmp_path, 2)
    with pytest.raises(UserError, match=r"does not fit what is trained here, first weight:body.layers.0"):
        make("ppo", world, tmp_path, resume=True, override=True, top_layers="3").train()
    with pytest.raises(UserError, match=r"holds 5 rollouts that are in use, the iteration now has 3"):
        make("ppo", world, tmp_path, resume=True, override=True, batch_size=4, data=prompts(9)).train()


def test_damaged_checkpoint_is_skipped(world, tmp_path):
    train(make("ppo", world, tmp_path / "whole", save_every=3))
    stopped_run = tmp_path / "run"
    train(make("ppo", world, stopped_run, save_every=3))
    (stopped_run / "checkpoints" / "latest").write_text("step-000099\n")
    newest = stopped_run / "checkpoints" / "step-000008" / "trained.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    trainer = make("ppo", world, stopped_run, save_every=3, resume=True)
    trainer.checkpoints.console = said = Said()
    train(trainer)
    assert said.lines[0] == "rejected latest: it names 'step-000099', which is not there"
    assert said.lines[1].startswith("rejected step-000008: trained.safetensors has ")
    assert said.lines[2].startswith("continuing after optimizer step 6")
    assert_same(stopped_run, tmp_path / "whole")

    for path in (stopped_run / "checkpoints").glob("step-*"):
        (path / "state.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(step-000008: state.json is missing; step-"):
        make("ppo", world, stopped_run, save_every=3, resume=True).train()


def test_checkpoint_is_rejected_if_metrics_were_cut(world, tmp_path):
    train(make("sft", world, tmp_path / "run", save_every=2))
    os.truncate(tmp_path / "run" / "metrics.jsonl", 10)
    with pytest.raises(UserError, match=r"is whole \(step-000005: metrics.jsonl was cut below the \d+ bytes"):
        make("sft", world, tmp_path / "run", resume=True).train()


def test_failed_save_stops_the_run(world, tmp_path, monkeypatch):
    train(make("sft", world, tmp_path / "whole", save_every=2))
    trainer, sync, wrote = make("sft", world, tmp_path / "run", save_every=2), files.sync, []

    def full(path):
        wrote.append(path)
        if "step-000004" in str(path):
            raise OSError(28, "No space left on device", str(path))
        sync(path)

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(UserError, match=r"step-000004 cannot be written \(No space left on device\)"):
        trainer.train()
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["latest", "step-000002"]
    monkeypatch.setattr(files, "sync", sync)
    train(make("sft", world, tmp_path / "run", save_every=2, resume=True))
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_small_disk_is_refused_before_training(world, tmp_path, monkeypatch):
    trainer = make("sft", world, tmp_path / "run", save_every=1, keep=1)
    needed = 2 * trainer.zero.kept_bytes + files.SPARE_BYTES
    for free, fits in ((needed, True), (needed - 1, False)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(files.shutil, "disk_usage", lambda path, usage=usage: usage)
        if fits:
            with trainer.checkpoints:
                continue
        with pytest.raises(UserError, match=r"--save-every with --keep 1 needs 0.\d+ GB.*are free at"):
            trainer.train()


def test_writing_overlaps_training(world, tmp_path, monkeypatch):
    """What is written is what was there when the save began, however slow the disk; the next save waits for it."""
    train(make("sft", world, tmp_path / "whole", save_every=2))
    save, log = files.save_file, []

    def slow(tensors, path):
        time.sleep(0.3)
        log.append(Path(path).parent.name)
        save(tensors, path)

    monkeypatch.setattr(files, "save_file", slow)
    trainer = make("sft", world, tmp_path / "run", save_every=2)
    own = trainer.zero.step
    trainer.zero.step = lambda lr: (log.append("step"), own(lr))[1]
    train(trainer)
    first, second, last = (f".part-step-00000{n}" for n in (2, 4, 5))
    assert log == [*["step"] * 4, first, "step", second, last]
    assert_same(tmp_path / "run", tmp_path / "whole")
    for step in ("step-000004", "step-000005"):
        ours, theirs = (tmp_path / run / "checkpoints" / step / "trained.safetensors" for run in ("run", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_first_rank_takes_metrics_when_ranks_change(world):
    metrics = Metrics()
    metrics.add("a", torch.tensor(1.5), 2)
    metrics.add("b", 0.25, torch.tensor(3))
    states = [metrics.state(), {"a": [0.5, 2.0], "b": [0.75, 1.0]}]
    assert states[0] == {"a": [1.5, 2.0], "b": [0.25, 3.0]}
    assert Metrics.of_states(states, world).read(world) == {"a": 0.5, "b": 0.25}
    second = Metrics.of_states(states + states, type(world)(1, 2, world.device))
    assert second.state() == {"a": [0.0, 0.0], "b": [0.0, 0.0]}
    metrics = Metrics.of_states([{"a": [1.0, float(1 << 24)]}], world)
    metrics.add("a", 0.0, torch.tensor(1))
    assert metrics.state() == {"a": [1.0, float((1 << 24) + 1)]}


def test_fingerprint_changes_with_model_and_data():
    a, b, tokens = tiny_model("bloom"), tiny_model("bloom", seed=1), [(1, 2), (3,)]
    assert fingerprint(a, tokens) == fingerprint(tiny_model("bloom"), [[1, 2], [3]])
    assert fingerprint(a, tokens)["weights"] != fingerprint(b, tokens)["weights"]
    others = [fingerprint(a, other)["tokens"] for other in (tokens, [(1,), (2, 3)], [(1, 2, 3)], [(3,), (1, 2)])]
    assert len(set(others)) == 4
