"""A number that is not finite stops the run on every rank before the step, with the last weights and the batch kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from engine.base.errors import UserError
from engine.distributed.world import start_world
from engine.objectives.experience import Experience
from engine.training.guards import NOTE, file_of, read_kept
from tests.engine.training.trainers import (
    EVERY_STAGE,
    make_trainer,
    one_rank,
    prompts,
    rankings,
    sft_examples,
    tiny_model,
    train,
)
from tests.ranks import run_ranks

STAGES = ("sft", "reward", "dpo", "ppo")
STOPPED_AT = 2  # steps that are done: PPO's third is inside of its first iteration


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def spoil(trainer, what, calls):
    """From that many microbatches with a gradient on: a loss of NaN, an infinite one, or an infinite gradient alone."""
    seen = []

    def forward(module, args, out):
        if not torch.is_grad_enabled():
            return out
        seen.append(1)
        if len(seen) <= calls:
            return out
        first, *rest = out if isinstance(out, tuple) else (out,)
        if what == "loss":
            first = first * math.nan
        elif what == "loss alone":
            first = first + math.inf
        else:
            first.register_hook(lambda grad: grad * math.inf)
        return (first, *rest) if rest else first

    trainer.zero.module.register_forward_hook(forward)


def microbatches_of(trainer, steps):
    """How many forwards with a gradient so many steps take."""
    seen, own = [], trainer.zero.step
    counts = []
    handle = trainer.zero.module.register_forward_hook(lambda *_: seen.append(1) if torch.is_grad_enabled() else None)

    def step(lr):
        counts.append(len(seen))
        return own(lr)

    trainer.zero.step = step
    train(trainer)
    handle.remove()
    return counts[steps - 1]


def digest(folder):
    return hashlib.sha256((folder / "trained.safetensors").read_bytes()).hexdigest()


def stopped(stage, world, folder, what, calls, rank=0, **changes):
    """The line of a run that is spoilt on one rank."""
    trainer = make_trainer(stage, world, folder, **changes)
    if world.rank == rank:
        spoil(trainer, what, calls)
    with pytest.raises(UserError) as stop:
        train(trainer)
    return str(stop.value)


@pytest.mark.parametrize(
    ("what", "zero"),
    [
        *(("gradient", zero) for zero in EVERY_STAGE),
        ("loss", "zero0"),
        ("loss alone", "zero0"),
        ("loss alone", "zero2"),
    ],
)
def test_step_is_skipped(world, tmp_path, what, zero):
    """Weights, moments and the count of steps that are saved are those of a run that was not spoilt, bit for bit."""
    case = {"zero": zero, "save_every": 2, "keep": 9}
    calls = microbatches_of(make_trainer("sft", world, tmp_path / "whole", **case), STOPPED_AT)
    line = stopped("sft", world, tmp_path / "spoilt", what, calls, **{**case, "save_every": 0})
    assert line.startswith(f"step 3: the {what.split()[0]} is not finite on rank 0") and "\n" not in line
    saved = tmp_path / "spoilt" / "checkpoints" / "step-000002"
    assert str(saved) in line
    assert digest(saved) == digest(tmp_path / "whole" / "checkpoints" / "step-000002")


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_run_resumes(world, tmp_path, stage):
    """What is saved continues as if nothing had been: the rest is that of a run that was never stopped."""
    whole = make_trainer(stage, world, tmp_path / "whole")
    calls = microbatches_of(whole, STOPPED_AT)
    stopped(stage, world, tmp_path / "run", "gradient", calls)
    train(make_trainer(stage, world, tmp_path / "run", resume=True))
    rows = [
        [{k: v for k, v in json.loads(line).items() if not k.startswith("time/") and k != "eps"}
         for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    ]  # fmt: skip
    assert rows[0] == rows[1]
    assert (tmp_path / "whole" / "samples.jsonl").exists() == (stage == "ppo")
    if stage == "ppo":
        texts = [(tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "run")]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_run_stops_again_with_one_line(world, tmp_path, stage):
    """PPO resumes inside an iteration here: its rollouts come from the checkpoint."""
    calls = microbatches_of(make_trainer(stage, world, tmp_path / "whole"), STOPPED_AT)
    stopped(stage, world, tmp_path / "run", "gradient", calls)
    line = stopped(stage, world, tmp_path / "run", "gradient", 0, resume=True)
    assert line.startswith("step 3: the gradient is not finite on rank 0") and "\n" not in line


@pytest.mark.parametrize("stage", STAGES)
def test_batch_is_kept(world, tmp_path, stage):
    data = {"sft": sft_examples, "reward": rankings, "dpo": rankings, "ppo": prompts}[stage]()
    line = stopped(stage, world, tmp_path / "run", "loss", 0, data=data)
    file = file_of(tmp_path / "run", 1, 0)
    assert f"python launch/{stage}.py --replay {file}" in line and "no step was taken yet" in line
    note, tensors = read_kept(file)
    assert (note["stage"], note["step"], note["rank"], note["ranks"]) == (stage, 1, 0, 1)
    assert note["settings"]["seed"] == 0 and note["checkpoint"] is None and note["quantity"] == "the loss"
    sequences = [tuple(part.tolist()) for part in tensors["tokens_T"].split(tensors["lengths_S"].tolist())]
    assert len(note["ids"]) == len(sequences) >= 1
    if stage == "sft":
        known = {e.id: (e.tokens, max(1, e.prompt_len)) for e in data}
        assert [known[i] for i in note["ids"]] == list(zip(sequences, tensors["prompt_len_S"].tolist()))
        assert len(sequences) == 5  # 15 in steps of at most 7
    elif stage in ("reward", "dpo"):
        known = {r.id: [e.tokens for e in r.examples] for r in data}
        assert sequences == [tokens for i in dict.fromkeys(note["ids"]) for tokens in known[i]]
        ranks = {r.id: list(r.ranks) for r in data}
        assert tensors["ranks_S"].tolist() == [x for i in dict.fromkeys(note["ids"]) for x in ranks[i]]
        if stage == "dpo":
            assert tensors["ref_logprob_S"].isfinite().all() and len(tensors["ref_logprob_S"]) == len(sequences)
    else:
        known = {p.id: p.tokens for p in data}
        assert all(s[: len(known[i])] == known[i] for i, s in zip(note["ids"], sequences))
        columns = {f.name for f in dataclasses.fields(Experience)} - {"batch", "critic_trunk_TD", "rollout_S"}
        assert columns | {"id_S"} <= set(tensors)
    assert all(i in line for i in note["ids"][:1])


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_score_that_is_not_finite(world, tmp_path, score):
    """Infinity too, though clipped scores would hide it; the rollouts are not kept for the run that goes on."""
    trainer = make_trainer("ppo", world, tmp_path / "run")
    own, calls = trainer.scorer, []

    def scorer(*args):
        calls.append(1)
        score_S = own(*args)
        if len(calls) == 2:
            score_S[1] = score
        return score_S

    scorer.trunk = own.trunk
    trainer.scorer = scorer
    with pytest.raises(UserError, match=r"step 5: score of a rollout is not finite on rank 0 \(record p\d\)"):
        train(trainer)
    rest = make_trainer("ppo", world, tmp_path / "run", resume=True)
    train(rest)
    train(make_trainer("ppo", world, tmp_path / "whole"))
    texts = [(tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "run")]
    assert texts[0] == texts[1]


def test_exploding_weights(world, tmp_path):
    """No hook: a learning rate without reason."""
    with pytest.raises(UserError, match=r"step [2345]: the (loss|gradient) is not finite"):
        train(make_trainer("sft", world, tmp_path / "run", lr=1e30, warmup_steps=0, eps=1e-8))


CASES = {"sft": "zero0", "reward": "zero2", "dpo": "zero0", "ppo": "zero3"}


def both_ranks(folder):
    world = start_world()
    return {
        stage: stopped(stage, world, folder / stage, "loss", 0, rank=1, zero=zero, save_every=1)
        for stage, zero in CASES.items()
    }


def test_both_ranks_stop_with_the_same_message(tmp_path):
    first, second = run_ranks(both_ranks, 2, tmp_path)
    for stage in CASES:
        assert first[stage] == second[stage] and "the loss is not finite on rank 1 (record" in first[stage]
        for rank in (0, 1):
            note, _ = read_kept(file_of(tmp_path / stage, 1, rank))
            assert note["rank"] == rank


def test_bfloat16(world, tmp_path):
    """DeepSpeed keeps float32 masters there, and looks for overflow by itself."""
    trainer = make_trainer("sft", world, tmp_path / "run", model=tiny_model("bloom").bfloat16(), save_every=1)
    before = trainer.zero.state_dict()
    spoil(trainer, "gradient", 0)
    with pytest.raises(UserError, match="step 1: the gradient is not finite"):
        train(trainer)
    assert all(torch.equal(before[name], weight) for name, weight in trainer.zero.state_dict().items())


GOOD_NOTE = {"stage": "sft", "step": 1, "rank": 0, "quantity": "the loss", "settings": {}, "ids": []}


@pytest.mark.parametrize("note", [
    None, "[1]", "{", "[" * 5000, json.dumps({**GOOD_NOTE, "stage": "x"}), json.dumps({**GOOD_NOTE, "step": "1"}),
])  # fmt: skip
def test_foreign_note_is_refused(tmp_path, note):
    tokens = {"tokens_T": torch.arange(3), "lengths_S": torch.tensor([3])}
    save_file(tokens, tmp_path / "f.safetensors", None if note is None else {NOTE: note})
    with pytest.raises(UserError, match="--replay .*f.safetensors"):
        read_kept(tmp_path / "f.safetensors")


@pytest.mark.parametrize("tensors", [
    {}, {"tokens_T": torch.arange(3)}, {"tokens_T": torch.arange(3), "lengths_S": torch.tensor([2])},
    {"tokens_T": torch.arange(3.0), "lengths_S": torch.tensor([3])},
    {"tokens_T": torch.arange(3), "lengths_S": torch.tensor([4, -1])},
])  # fmt: skip
def test_inconsistent_lengths_are_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "f.safetensors", {NOTE: json.dumps(GOOD_NOTE)})
    with pytest.raises(UserError, match="is not a batch that a run has kept"):
        read_kept(tmp_path / "f.safetensors")


def test_missing_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    for name in ("absent", "text", "."):
        with pytest.raises(UserError, match="cannot be read"):
            read_kept(tmp_path / name)
