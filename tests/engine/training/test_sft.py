"""SFT: the loss by hand, every sequence once an epoch, two ranks equal one under every ZeRO stage, what is saved."""

import random
from collections import Counter

import pytest
import torch

from engine.text.encoding import Example
from tests.engine.training.trainers import (
    EOS,
    EVERY_STAGE,
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

SINGLE = {  # steps of 2, 2 and 1
    "data": sft_examples(5), "batch_size": 2, "heldout": sft_examples(4, 9), "eval_every": 2,
}  # fmt: skip


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def test_two_ranks_equal_one(tmp_path):
    """Five steps on uneven data, one of them with a single sequence, so that a rank has nothing to do."""
    cases = {
        "zero0": {"zero": "zero0"}, "zero3": {"zero": "zero3"},
        "llama": {"family": "llama", "loss_on": "all", "zero": "zero2_offload"},
    }  # fmt: skip
    check_two_ranks("sft", tmp_path, {name: {**case, **SINGLE} for name, case in cases.items()})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_one_under_every_stage(tmp_path, family):
    check_two_ranks("sft", tmp_path, {zero: {"zero": zero, "family": family, **SINGLE} for zero in EVERY_STAGE})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_first_loss_is_the_mean_negative_log_probability(world, tmp_path, family, loss_on):
    """Each sequence alone, all of its logits, the chosen targets picked by index."""
    model, examples = tiny_model(family), sft_examples()
    total, count = 0.0, 0
    with torch.no_grad():
        for example in examples:
            logprob_TV = logits_of(model, example.tokens).double().log_softmax(-1)
            first = 1 if loss_on == "all" else example.prompt_len
            for i in range(first, len(example.tokens)):
                total -= float(logprob_TV[i - 1, example.tokens[i]])
                count += 1
    trainer = make_trainer("sft", world, tmp_path / "run", model=model, loss_on=loss_on, batch_size=15, max_steps=1)
    (row,) = train(trainer)["rows"]
    assert row["loss/sft"] == pytest.approx(total / count, rel=1e-6)
    assert row["tokens"] == sum(len(e.tokens) for e in examples)


def test_result_is_independent_of_microbatch_size(world, tmp_path):
    small = train(make_trainer("sft", world, tmp_path / "small", tokens_per_microbatch=64))
    large = train(make_trainer("sft", world, tmp_path / "large", tokens_per_microbatch=10_000))
    assert_same_rows(small["rows"], large["rows"], "microbatches")
    assert_same_weights(small["weights"], large["weights"], 1e-6)


def test_bfloat16_follows_float32(world, tmp_path):
    wide = train(make_trainer("sft", world, tmp_path / "float32", model=tiny_model("bloom")))
    half = train(make_trainer("sft", world, tmp_path / "bfloat16", model=tiny_model("bloom").bfloat16()))
    assert all(weight.dtype == torch.bfloat16 for weight in half["weights"].values())
    losses = [[row["loss/sft"] for row in outcome["rows"]] for outcome in (half, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_sequence_is_used_once_per_epoch(world, tmp_path, epochs):
    examples = sft_examples()
    trainer = make_trainer("sft", world, tmp_path / "run", data=examples, epochs=epochs, max_steps=None)
    used = Counter()

    def count(_, args):
        batch, _, columns_A = args
        used.update(tuple(tokens.tolist()) for tokens in batch.tokens_T.split(batch.lengths))
        used["targets"] += len(columns_A)

    trainer.zero.module.register_forward_pre_hook(count)
    rows = train(trainer)["rows"]
    assert len(rows) == epochs * 3  # 15 sequences in steps of at most 7
    assert used.pop("targets") == epochs * sum(len(e.tokens) - e.prompt_len for e in examples)
    expected = Counter(e.tokens for e in examples)
    assert used == Counter({tokens: epochs * times for tokens, times in expected.items()})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{"loss_on": "all"}, {"top_layers": "1", "epochs": 3}])
def test_heldout_loss_before_during_and_after(world, tmp_path, family, changes):
    """The mean over the held-out tokens under the weights of that step; what is held out is not trained on."""
    heldout, model = sft_examples(6, 9), tiny_model(family)

    def by_hand(model):
        terms = []
        for example in heldout:
            logprob_TV = logits_of(model, example.tokens).double().log_softmax(-1)
            first = 1 if changes.get("loss_on") == "all" else example.prompt_len
            terms += [-float(logprob_TV[i - 1, example.tokens[i]]) for i in range(first, len(example.tokens))]
        return sum(terms) / len(terms)

    with torch.no_grad():
        before = by_hand(model)
        trainer = make_trainer(
            "sft", world, tmp_path / "run", model=model, heldout=heldout, eval_every=2, max_steps=5, **changes
        )
        with torch.enable_grad():
            outcome = train(trainer)
        after = by_hand(trainer.model)
    assert [step for step, _ in outcome["measured"]] == [0, 2, 4, 5]
    losses = [row["eval/loss"] for _, row in outcome["measured"]]
    assert (losses[0], losses[-1]) == pytest.approx((before, after), rel=1e-5)
    assert abs(before - after) > 1e-3 and len(set(losses)) == 4
    assert (outcome["result"]["heldout_loss_before"], outcome["result"]["heldout_loss"]) == (losses[0], losses[-1])
    without = train(make_trainer("sft", world, tmp_path / "without", family=family, max_steps=5, **changes))
    assert without["rows"] == outcome["rows"] and without["measured"] == []
    assert "heldout_loss" not in without["result"]


@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama"])
def test_learns_a_checkable_task(world, tmp_path, family):
    """Answer the last word's partner in the upper half of the vocabulary, then stop; held-out prompts are answered."""
    rng = random.Random(5)
    texts = [words(rng, rng.randrange(1, 7), below=32) for _ in range(512)]
    examples = [Example(str(i), (*text, text[-1] + 28, EOS), len(text)) for i, text in enumerate(texts)]
    trainer = make_trainer(
        "sft", world, tmp_path / "run", family=family, data=examples[:448], lr=1e-2, eps=1e-8, batch_size=32, epochs=6,
        max_steps=None, tokens_per_microbatch=1024,
    )  # fmt: skip
    result = train(trainer)["result"]
    assert result["loss_first"] > 2 and result["loss_last"] < 0.1
    model = trainer.model
    with torch.no_grad():
        answers = [logits_of(model, e.tokens)[e.prompt_len - 1].argmax().item() for e in examples[448:]]
    assert sum(answer == e.tokens[e.prompt_len] for answer, e in zip(answers, examples[448:])) >= 60
