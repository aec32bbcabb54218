"""Pretraining text in PPO: the loss and its gradient by hand, exact passes, ranks, resume, and no trace without it."""

import copy
import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.mixture import Source
from engine.objectives.losses import pretraining_loss
from engine.training.metrics import Metrics
from engine.training.pretraining import Pretraining, TextFile, pieces_of, shared_out
from tests.engine.training.trainers import (
    EOS,
    FAMILIES,
    assert_same_rows,
    assert_same_weights,
    check_two_ranks,
    logits_of,
    make_trainer,
    one_rank,
    tiny_tokenizer,
    train,
    without_clock,
)
from tests.engine.training.trainers import settings as of_stage

TEXTS = [[" ".join(f"w{4 + (7 * d + 3 * i) % 50}" for i in range(n)) for d, n in enumerate((5, 1, 30, 90, 12))]]
MORE = [*TEXTS, ["w5 w6 w7", "w9"]]
TEXT = {"texts": TEXTS, "ptx_data": ["a.txt"], "ptx_coef": 0.7, "ptx_tokens": 37}
TWO = {**TEXT, "texts": MORE, "ptx_data": ["a.txt:3", "b.txt"]}


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def test_loss_by_hand():
    """Half of the mean of 1, 2 and 3 over a step of 4 tokens, one of which another rank has."""
    logprob_A = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    loss = pretraining_loss(logprob_A, 0.5, 4)
    loss.backward()
    assert loss.item() == 0.75 and logprob_A.grad.tolist() == [-0.125] * 3


@given(tokens=st.lists(st.integers(), min_size=2, max_size=50), longest=st.integers(2, 20))
def test_pieces_predict_every_token_but_the_first_once(tokens, longest):
    pieces = pieces_of(tokens, longest)
    assert [token for piece in pieces for token in piece[1:]] == tokens[1:]
    assert all(2 <= len(piece) <= longest for piece in pieces) and pieces[0][0] == tokens[0]
    assert all(a[-1] == b[0] for a, b in zip(pieces, pieces[1:]))


@settings(deadline=None)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=8), count=st.integers(1, 30), steps=st.integers(1, 9))
def test_every_token_is_predicted_once_a_pass(lengths, count, steps):
    """A step has exactly its tokens; sequences are parts of one document; a step alone equals the step in order."""
    names = iter(range(10_000))
    file = TextFile(tuple(tuple(next(names) for _ in range(n)) for n in lengths), 3, 0)
    taken = [file.take(step * count, count) for step in range(steps)]
    assert all(sum(len(x) - 1 for x in part) == count for part in taken)
    parts = {p[i:j] for p in file.pieces for i in range(len(p)) for j in range(i + 2, len(p) + 1)}
    assert all(x in parts for part in taken for x in part)
    predicted = [token for part in taken for x in part for token in x[1:]]
    for start in range(0, len(predicted), file.tokens):
        seen = Counter(predicted[start : start + file.tokens])
        assert max(seen.values()) == 1
    alone = TextFile(file.pieces, 3, 0)
    assert alone.take((steps - 1) * count, count) == taken[-1]


def test_shares_of_a_step():
    assert shared_out(10, [0.25, 0.75]) == (3, 7) and shared_out(4, [0.25, 0.75]) == (1, 3)
    assert shared_out(7, [1 / 3] * 3) == (3, 2, 2) and shared_out(5, [1.0]) == (5,)
    text = Pretraining.of([Source("a", 3), Source("b")], MORE, tiny_tokenizer(), 64, 0, 0.5, 8)
    assert text.parts == (6, 2) and sum(len(x) - 1 for x in text.sequences(11)) == 8
    assert text.rows(10)["text 2"] == "b: 4 tokens, 25.0% of those of a step, read 5.00 times"
    with pytest.raises(UserError, match="--ptx-tokens is 1, too few for a token of b in every step"):
        Pretraining.of([Source("a", 3), Source("b")], MORE, tiny_tokenizer(), 64, 0, 0.5, 1)


def test_documents_end_with_eos_and_do_not_meet():
    text = Pretraining.of([Source("a")], TEXTS, tiny_tokenizer(), 64, 0, 1.0, 9)
    documents = {tuple(piece) for piece in text.files[0].pieces}
    assert sum(piece[-1] == EOS for piece in documents) == len(TEXTS[0]) and max(map(len, documents)) == 64
    assert all(EOS not in x[:-1] for step in range(30) for x in text.sequences(step))


@pytest.mark.parametrize("changes", [{}, {"top_layers": "all"}, {"advantage": "rloo", "samples_per_prompt": 5}])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_is_that_of_plain_torch(world, tmp_path, family, changes):
    """The gradient of an update less that of the same update without text, against float64 logits of each sequence."""
    gradients, models = {}, {}
    for name, text in (("without", {}), ("with", TWO)):
        trainer = make_trainer("ppo", world, tmp_path / name, family=family, **text, **changes)
        models[name] = trainer
        metrics = Metrics()
        experience = trainer.collect(0, metrics)
        trainer.zero.step = lambda lr: 0.0
        trainer.update(experience, range(5), 1e-2, metrics)
        gradients[name] = {n: p.grad.clone() for n, p in trainer.policy.named_parameters() if p.grad is not None}
    trainer = models["with"]
    model = copy.deepcopy(trainer.model).double().requires_grad_(True)
    sequences, total = trainer.text.sequences(0), 0.0
    assert sum(len(x) - 1 for x in sequences) == 37 and len(sequences) > 2
    for x in sequences:
        logprob_TV = logits_of(model, x).log_softmax(-1)
        total = total - sum(logprob_TV[i - 1, x[i]] for i in range(1, len(x)))
    (0.7 * total / 37).backward()
    expected, seen = dict(model.named_parameters()), 0
    for name, gradient in gradients["with"].items():
        added = gradient - gradients["without"][name]
        own = name.removeprefix("body.").removeprefix("model.")
        if own.startswith(("value.", "critic.")):
            assert torch.equal(gradient, gradients["without"][name]), name
            continue
        wanted = expected[own].grad.float()
        torch.testing.assert_close(added, wanted, rtol=2e-4, atol=2e-6 * max(1.0, float(wanted.abs().max())))
        seen += float(wanted.abs().max()) > 1e-4
    assert seen > 5
    assert metrics.read(world)["loss/ptx"] == pytest.approx(float(total.detach()) / 37, rel=1e-5)


FEW = {**TEXT, "texts": [["w5 w6 w7 w8 w9"]], "ptx_tokens": 2}
ON_TWO_RANKS = {"zero3": {"zero": "zero3", **FEW}}
MORE_ON_TWO_RANKS = {
    "zero2": {"zero": "zero2", **FEW}, "zero3": {"zero": "zero3", **TWO},
    "zero0": {"zero": "zero0", **TWO}, "all": {"zero": "zero3", "top_layers": "all", "family": "llama", **TWO},
    "critic": {"zero": "zero3", "critic": "separate", **TWO},
}  # fmt: skip


@pytest.mark.parametrize("cases", [ON_TWO_RANKS, pytest.param(MORE_ON_TWO_RANKS, marks=pytest.mark.slow)])
def test_two_ranks_equal_one(tmp_path, cases):
    """Under ZeRO-3 the trunk is gathered; one short sequence in a step leaves a rank with a stand-in."""
    check_two_ranks("ppo", tmp_path, {name: {**case, "minibatch_size": 2} for name, case in cases.items()})


def test_a_separate_critic_is_left_alone(world, tmp_path):
    """While it trains alone, the text waits."""
    outcome = train(make_trainer("ppo", world, tmp_path / "run", critic="separate", critic_warmup=1, **TEXT))
    first, second = outcome["rows"]
    assert "loss/ptx" not in first and second["loss/ptx"] > 1


def test_microbatches_do_not_matter(world, tmp_path):
    small, large = (
        train(make_trainer("ppo", world, tmp_path / str(n), tokens_per_microbatch=n, **TWO)) for n in (80, 9999)
    )
    assert_same_rows(small["rows"], large["rows"], "microbatches")
    assert_same_weights(small["weights"], large["weights"], 1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_resumed_run_reads_on(world, tmp_path, steps):
    """Stopped inside an iteration, and in the next: the same bits as a run that never stopped."""
    whole = train(make_trainer("ppo", world, tmp_path / "whole", save_every=1, keep=99, **TWO))
    run = make_trainer("ppo", world, tmp_path / "run", save_every=1, keep=99, **TWO)
    own = run.checkpoints.after_step

    def stopping(step, *args, **kwargs):
        own(step, *args, **kwargs)
        if step == steps:
            raise KeyboardInterrupt

    run.checkpoints.after_step = stopping
    with pytest.raises(KeyboardInterrupt):
        train(run)
    again = train(make_trainer("ppo", world, tmp_path / "run", resume=True, save_every=1, keep=99, **TWO))
    rows = [
        [without_clock(json.loads(line)) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    ]
    assert rows[0] == rows[1] and all(row["loss/ptx"] > 0 for row in rows[0])
    assert all(torch.equal(again["weights"][name], weight) for name, weight in whole["weights"].items())
    with pytest.raises(UserError, match="text"):
        train(make_trainer("ppo", world, tmp_path / "run", resume=True, **{**TWO, "texts": MORE[::-1]}))


def test_text_lowers_its_own_loss(world, tmp_path):
    """And without the flag nothing is computed: the rows have no such name."""
    many = {"max_steps": 6, "epochs": 9, "lr": 3e-2, "ptx_coef": 20.0}
    rows = train(make_trainer("ppo", world, tmp_path / "run", **{**TEXT, **many}))["rows"]
    assert rows[-1]["loss/ptx"] < 0.8 * rows[0]["loss/ptx"]
    assert all("ptx" not in name for name in train(make_trainer("ppo", world, tmp_path / "plain"))["rows"][0])


def test_text_that_is_not_finite_is_named(world, tmp_path):
    trainer = make_trainer("ppo", world, tmp_path / "run", **TEXT)
    own = trainer.text.backward

    def spoilt(*args):
        losses = own(*args)
        trainer.zero.backward(torch.full((), math.nan) * next(trainer.policy.parameters()).sum(), last=False)
        return [*losses, torch.tensor(math.nan)]

    object.__setattr__(trainer.text, "backward", spoilt)
    with pytest.raises(UserError, match="step 1: the loss of the pretraining text is not finite on rank 0; the step"):
        train(trainer)


def test_flags_of_text_need_text():
    for name, value in (("ptx_coef", 0.5), ("ptx_tokens", 9)):
        with pytest.raises(UserError, match="is given without --ptx-data"):
            of_stage("ppo", **{name: value})
    for name, value in (("ptx_coef", 0.0), ("ptx_coef", math.inf), ("ptx_tokens", 0)):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is {value}"):
            of_stage("ppo", ptx_data=["a.txt"], **{name: value})
    with pytest.raises(UserError, match="--ptx-data a.txt:0: the weight is 0"):
        of_stage("ppo", ptx_data=["a.txt:0"])
