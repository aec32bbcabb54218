"""--keep-best: exported are the weights of the best measured step, bit for bit, also after a kill and on ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.base.errors import UserError
from engine.distributed.world import start_world
from engine.models import load_model
from engine.run.checkpoint_files import BEST
from engine.run.kept import in_words
from tests.engine.training.stopping import Said, make, stop_during, stopped
from tests.engine.training.trainers import (
    assert_same_rows,
    assert_same_weights,
    make_trainer,
    one_rank,
    outcomes,
    prompts,
    rankings,
    sft_examples,
    tiny_model,
    train,
)
from tests.ranks import run_ranks
from tests.reliability.remains import assert_same

# A rate so high on so little data that what is held out gets worse again.
RISING = {
    "sft": {
        "data": sft_examples(5), "heldout": sft_examples(6, 9), "batch_size": 5, "lr": 1e-2, "keep_best": "loss",
    },
    "reward": {"data": rankings(3), "heldout": rankings(6, 5), "lr": 3e-2, "keep_best": "loss"},
    "dpo": {"data": rankings(3), "heldout": rankings(6, 5), "lr": 1e-1, "keep_best": "loss"},
    "ppo": {"heldout": prompts(6, 8), "lr": 1e-1, "keep_best": "score"},
}  # fmt: skip
STEPS = 8
SHARED = {"schedule": "constant", "eps": 1e-8, "epochs": 20, "max_steps": STEPS, "eval_every": 1}


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def case_of(stage: str, **changes) -> dict:
    return {**SHARED, **RISING[stage], **changes}


def values_of(outcome: dict, name: str) -> dict[int, float]:
    """{step: value} of a measure, without the one before training."""
    prefix = "heldout" if f"heldout/{name}" in outcome["measured"][0][1] else "eval"
    return {step: row[f"{prefix}/{name}"] for step, row in outcome["measured"] if step}


def model_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "model").iterdir() if p.name != "README.md"}


@pytest.mark.parametrize("stage", RISING)
def test_the_best_step_is_exported_and_equals_a_run_that_ended_there(world, tmp_path, stage):
    case = case_of(stage)
    outcome = train(make_trainer(stage, world, tmp_path / "best", **case))
    kept, values = outcome["result"]["kept"], values_of(outcome, case["keep_best"])
    choose = min if case["keep_best"] == "loss" else max
    best = choose(values, key=values.get)  # the first of equal ones
    step = kept.get("step") or kept.get("iteration")
    assert 0 < step == best < STEPS, values
    assert (kept["value"], kept["last_value"]) == (values[best], values[STEPS])
    assert json.loads((tmp_path / "best" / "config.json").read_text())["kept"] == kept
    assert not (tmp_path / "best" / BEST).exists()
    ended = train(make_trainer(stage, world, tmp_path / "ended", **{**case, "keep_best": None, "max_steps": best}))
    assert model_files(tmp_path / "best") == model_files(tmp_path / "ended")
    measured = ("heldout_loss", "accuracy", "half_intervals", "score_mean", "score_std")
    for name in (name for name in measured if name in ended["result"]):
        assert outcome["result"][name] == ended["result"][name], name
    last = train(make_trainer(stage, world, tmp_path / "last", **{**case, "keep_best": None}))
    assert last["rows"] == outcome["rows"] and last["measured"] == outcome["measured"]
    assert model_files(tmp_path / "last") != model_files(tmp_path / "best")
    assert "kept" not in last["result"]


def test_only_the_trained_layers_are_stored(world, tmp_path):
    """As the model reads them: in bfloat16 two bytes a weight, without the embeddings, the trunk and the critic."""
    case = case_of("ppo", max_steps=1, model=tiny_model("bloom").bfloat16(), critic="separate")
    trainer = make_trainer("ppo", world, tmp_path / "run", **case)
    sizes = []
    own = trainer.best._write
    trainer.best._write = lambda *args: (own(*args), sizes.append(trainer.best.file.stat()))
    train(trainer)
    trained = sum(p.numel() for n, p in trainer.zero.trained.items() if n.startswith("body."))
    assert 0 <= sizes[0].st_size - 2 * trained < 4000
    assert sizes[0].st_mode & 0o777 == (tmp_path / "run" / "config.json").stat().st_mode & 0o777


class Killed(BaseException):
    pass


def killed_during(trainer, step):
    """End training inside of its so-manieth optimizer step as SIGKILL would: nothing more is written."""
    own, calls = trainer.zero.step, []

    def stepping(lr):
        calls.append(lr)
        if len(calls) == step:
            raise Killed
        return own(lr)

    trainer.zero.step = stepping
    with pytest.raises(Killed):
        train(trainer)


@pytest.mark.parametrize("stage", RISING)
def test_killed_after_the_best_step_and_resumed(world, tmp_path, stage):
    """The file on disk may be of a later best step than the checkpoint: the link in the checkpoint counts."""
    updates = 4 if stage == "ppo" else 1
    case = case_of(stage, save_every=3 * updates, keep=2)
    whole = train(make_trainer(stage, world, tmp_path / "whole", **case))
    best = whole["result"]["kept"].get("step") or whole["result"]["kept"]["iteration"]
    for killed_in in {best + 1, STEPS}:
        name = f"killed-{killed_in}"
        killed_during(make_trainer(stage, world, tmp_path / name, **case), killed_in * updates)
        assert (tmp_path / name / BEST).exists()
        train(make_trainer(stage, world, tmp_path / name, resume=True, **case))
        assert_same(tmp_path / name, tmp_path / "whole")
        assert model_files(tmp_path / name) == model_files(tmp_path / "whole")


def test_a_checkpoint_brings_back_its_own_best_step(world, tmp_path):
    case = case_of("sft", save_every=100)
    whole = train(make_trainer("sft", world, tmp_path / "whole", **case))
    best = whole["result"]["kept"]["step"]
    stopped("sft", world, tmp_path / "run", best, **case)
    (tmp_path / "run" / BEST).unlink()  # the checkpoint has its own name for the file
    (tmp_path / "run" / BEST).write_bytes(b"of a later step")
    train(make_trainer("sft", world, tmp_path / "run", resume=True, **case))
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_signal_while_exporting_saves_the_weights_of_the_last_step(world, tmp_path):
    """The module has the best step's weights by then; a checkpoint holds the last one's all the same."""
    case = case_of("sft")
    trainer = make("sft", world, tmp_path / "run", **{**case, "save_every": 0})
    trainer.train()
    trainer.checkpoints.save(STEPS, trainer._state())
    train(make("sft", world, tmp_path / "saved", **{**case, "save_every": STEPS}))
    name = f"checkpoints/step-{STEPS:06d}/trained.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


@pytest.mark.parametrize("zero", ["zero0", "zero2", "zero3"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_weights_shown_are_read_and_masters_stay(world, tmp_path, zero, bfloat16):
    trainer = make("sft", world, tmp_path / "run", zero=zero, bfloat16=bfloat16, max_steps=2)
    trainer.train()
    before, kept = trainer.zero.weights(), trainer.zero.keep()
    other = {name: weight + 1 for name, weight in before.items()}
    trainer.zero.show(list(other), other.__getitem__)
    shown, still = trainer.zero.state_dict(), trainer.zero.keep()
    assert all(torch.equal(shown[name], other[name]) for name in before)
    assert still.keys() == kept.keys() and all(torch.equal(still[name], kept[name]) for name in kept)


def test_equal_values_keep_the_earlier_step(world, tmp_path):
    """A rate of 0: every step measures the same."""
    case = case_of("reward", lr=0.0, keep_best="accuracy", max_steps=3)
    trainer = make_trainer("reward", world, tmp_path / "run", **case)
    trainer.best.console = said = Said()
    kept = train(trainer)["result"]["kept"]
    assert (kept["step"], kept["measured"], kept["value"]) == (1, 3, kept["last_value"])
    assert any("the model before training is as good" in line for line in said.lines)
    assert in_words(kept).startswith("kept: step 1 of 3, held-out accuracy")


@pytest.mark.slow
def test_two_ranks_under_zero_3_keep_the_same_step(world, tmp_path):
    case = case_of(
        "sft", zero="zero3", top_layers="2", eps=1e-3
    )  # ranks add in another order: see SHARED in trainers.py
    two = run_ranks(outcomes, 2, "sft", tmp_path / "two", {"run": case})
    one = train(make_trainer("sft", world, tmp_path / "one", **{**case, "zero": "zero0"}))
    for rank in two:
        assert rank["run"]["result"]["kept"]["step"] == one["result"]["kept"]["step"] < STEPS
        assert_same_rows(rank["run"]["rows"], one["rows"], "two ranks")
        assert_same_weights(rank["run"]["weights"], one["weights"], 1e-6)
    saved = load_model(tmp_path / "two" / "run" / "model").state_dict()
    assert saved and all(torch.equal(weight, two[0]["run"]["weights"][name]) for name, weight in saved.items())


def killed_on_ranks(folder: Path, stage: str, case: dict, step: int) -> None:
    world = start_world()
    train(make_trainer(stage, world, folder / "whole", **case))
    trainer = make_trainer(stage, world, folder / "stopped", **case)
    if world.rank == 1:
        stop_during(trainer, step)
    with pytest.raises(SystemExit):
        train(trainer)
    train(make_trainer(stage, world, folder / "stopped", resume=True, **case))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "zero", "step"), [("reward", "zero3", 5), ("ppo", "zero3", 18), ("dpo", "zero2", 6)])
def test_two_ranks_resume_with_the_same_best_step(tmp_path, stage, zero, step):
    case = case_of(stage, zero=zero, save_every=100)
    run_ranks(killed_on_ranks, 2, tmp_path, stage, case, step)
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    assert model_files(tmp_path / "stopped") == model_files(tmp_path / "whole")


def test_a_damaged_file_is_one_line(world, tmp_path):
    trainer = make_trainer("sft", world, tmp_path / "run", **case_of("sft"))
    train(trainer)
    trainer.best.file.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="cannot be read .* held the weights of the best step"):
        trainer.best.settle(STEPS, None)
