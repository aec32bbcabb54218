"""SFT on several answers in one sequence: the loss by hand, one span as before, packs, ranks, a kept batch."""

import random

import pytest
import torch

from engine.batch import PackedBatch, action_mask
from engine.text.encoding import Example
from engine.training.replay import groups_of, replay
from engine.training.sft import learned_columns
from tests.engine.training.trainers import (
    EOS,
    FAMILIES,
    assert_same_rows,
    assert_same_weights,
    check_two_ranks,
    logits_of,
    make_trainer,
    one_rank,
    sft_examples,
    tiny_model,
    train,
    words,
)


def conversations(count=9, seed=4):
    """Sequences of 1 to 4 answers, each of 0 to 6 words and EOS."""
    rng, made = random.Random(seed), []
    for i in range(count):
        tokens, spans = [], []
        for _ in range(rng.choice([1, 2, 2, 4])):
            tokens += words(rng, rng.randrange(1, 8))
            start = len(tokens)
            tokens += [*words(rng, rng.randrange(7)), EOS]
            spans.append((start, len(tokens)))
        made.append(Example(f"c{i}", tuple(tokens), spans[-1][0], tuple(spans[:-1])))
    return made


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def by_hand(model, examples, loss_on):
    """(sum over the learned tokens of -log p, their number): each sequence alone, each target by its index."""
    total, count = 0.0, 0
    for example in examples:
        logprob_TV = logits_of(model, example.tokens).double().log_softmax(-1)
        spans = [*example.earlier, (example.prompt_len, len(example.tokens))]
        learned = [i for start, end in spans for i in range(start, end)]
        for i in range(1, len(example.tokens)) if loss_on == "all" else learned:
            total -= float(logprob_TV[i - 1, example.tokens[i]])
            count += 1
    return total, count


@pytest.mark.parametrize("changes", [{}, {"top_layers": "1"}])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_loss_is_over_every_answer(world, tmp_path, family, loss_on, changes):
    model, examples = tiny_model(family), conversations()
    with torch.no_grad():
        total, count = by_hand(model, examples, loss_on)
    trainer = make_trainer(
        "sft", world, tmp_path / "run", model=model, data=examples, heldout=examples, loss_on=loss_on, batch_size=9,
        max_steps=1, **changes,
    )  # fmt: skip
    outcome = train(trainer)
    assert outcome["rows"][0]["loss/sft"] == pytest.approx(total / count, rel=1e-6)
    assert outcome["result"]["heldout_loss_before"] == pytest.approx(total / count, rel=1e-6)
    assert trainer.terms_of(examples) == count


def test_columns_by_hand():
    """Answers at 2-3 and 5 of one sequence, and at 1 of another: their columns are one earlier."""
    batch = PackedBatch.from_sequences([range(10, 16), range(20, 22)])
    assert learned_columns(batch, [5, 1], [((2, 4),), ()]).tolist() == [1, 2, 4, 6]


def test_one_answer_has_the_columns_it_had():
    examples = sft_examples(30)
    batch, starts = PackedBatch.from_sequences([e.tokens for e in examples]), [e.response_start for e in examples]
    columns_A = learned_columns(batch, starts, [e.earlier for e in examples])
    assert torch.equal(columns_A, action_mask(batch, starts).nonzero()[:, 0])
    assert [e.num_learned for e in examples] == [len(e.tokens) - e.response_start for e in examples]


def test_result_is_independent_of_microbatch_size(world, tmp_path):
    small, large = (
        train(make_trainer("sft", world, tmp_path / str(n), data=conversations(), tokens_per_microbatch=n, epochs=5))
        for n in (64, 10_000)
    )
    assert_same_rows(small["rows"], large["rows"], "microbatches")
    assert_same_weights(small["weights"], large["weights"], 1e-6)


def test_two_ranks_equal_one(tmp_path):
    cases = {zero: {"zero": zero, "data": conversations(), "epochs": 5} for zero in ("zero0", "zero3")}
    check_two_ranks("sft", tmp_path, cases)


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_a_kept_batch_replays_every_answer(world, tmp_path, loss_on):
    model, examples = tiny_model("bloom"), conversations()
    trainer = make_trainer("sft", world, tmp_path / "run", model=model, data=examples, loss_on=loss_on)
    groups = groups_of("sft", [e.id for e in examples], trainer.kept_tensors(examples), trainer.settings)
    batches = [PackedBatch.from_sequences(group.sequences) for group in groups]
    with torch.no_grad():
        losses = [
            float(group.loss_of(trainer.zero.module, batch, None)["loss"]) for group, batch in zip(groups, batches)
        ]
        assert losses == pytest.approx([by_hand(model, [e], loss_on)[0] for e in examples], rel=1e-5)
    assert all(r.first_bad is None for r in replay(model, trainer.zero.module, None, groups))
