"""Continued pretraining: loss and bits per byte by hand, documents apart, ranks, resume, which weights are trained."""

import math
import random
import signal
from pathlib import Path

import pytest
import torch

from engine.batch import PackedBatch
from engine.training.corpus import HeldOutText
from engine.training.pretrain import packed
from engine.training.zero import ZeroStep
from tests.engine.training.test_corpus import ids_of, text_of, write
from tests.engine.training.trainers import (
    EVERY_STAGE,
    FAMILIES,
    assert_same_weights,
    check_two_ranks,
    logits_of,
    make_trainer,
    one_rank,
    tiny_model,
    tiny_tokenizer,
    train,
)


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


@pytest.fixture
def files(tmp_path):
    """Settings with two files to train on, weighted, and two held out."""
    first, second = text_of([3, 40, 1, 9, 17, 5, 28, 2, 2, 11]), text_of([8, 8, 21, 1, 30], 1)
    paths = [str(write(tmp_path / name, part)) for name, part in (("ne.txt", first), ("en.txt", second))]
    held = [str(write(tmp_path / f"held_{n}.txt", text_of([6, 25, 1], n + 2))) for n in range(2)]
    return {"data": [f"{paths[0]}:3", paths[1]], "eval_data": held, "eval_every": 2, "batch_size": 3}


def losses_of(model, sequences):
    """-log p of each token but the first of each sequence, each sequence alone, from all of its logits."""
    found = []
    for tokens in sequences:
        logprob_TV = logits_of(model, tokens).double().log_softmax(-1)
        found += [-logprob_TV[t, token].item() for t, token in enumerate(tokens[1:])]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_first_loss_is_the_mean_over_the_tokens_of_the_rows(world, tmp_path, files, family):
    model = tiny_model(family)
    trainer = make_trainer("pretrain", world, tmp_path / "run", family, **files)
    rows = [trainer.records[i] for i in trainer.steps[0]]
    with torch.no_grad():
        losses = losses_of(model, [e.tokens for row in rows for e in row.examples])
    assert trainer.terms_of(rows) == len(losses) == sum(row.predicted for row in rows)
    trainer.prepare(None)
    assert trainer.step(0) == pytest.approx(math.fsum(losses) / len(losses), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_per_byte_and_perplexity_by_hand(world, tmp_path, files, family):
    """The held-out documents whole, after EOS and without an EOS at the end; longer ones in parts."""
    model, results = tiny_model(family), None
    trainer = make_trainer("pretrain", world, tmp_path / "run", family, **files)
    with torch.no_grad():
        results, logged, line = trainer.measure()
    bits = []
    for n, path in enumerate(files["eval_data"]):
        documents = Path(path).read_text().strip().split("\n\n")
        parts = [ids_of(d)[:-1][i : i + 16] for d in documents for i in range(0, len(d.split()), 15)]
        with torch.no_grad():
            losses = losses_of(model, parts)
        assert len(losses) == sum(len(d.split()) for d in documents) == 32
        bits.append(math.fsum(losses) / math.log(2) / sum(len(d.encode()) for d in documents))
        assert results[f"bits_per_byte/held_{n}"] == pytest.approx(bits[n], rel=1e-6)
        assert results[f"perplexity/held_{n}"] == pytest.approx(math.exp(math.fsum(losses) / 32), rel=1e-6)
    assert results["bits_per_byte"] == results["bits_per_byte/held_0"]
    assert results["bits_per_byte_mean"] == pytest.approx(sum(bits) / 2)
    assert logged == {f"eval/{name}": value for name, value in results.items()}
    assert f"held_0 perplexity {results['perplexity/held_0']:.4g}"[:18] in line


def test_uniform_model_has_the_bits_of_its_vocabulary(world, tmp_path, files):
    """With weights of 0 each of 60 tokens has probability 1/60: log2(60) bits a token, whatever the text."""
    model = tiny_model("bloom")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    trainer = make_trainer("pretrain", world, tmp_path / "run", model=model, **files)
    with torch.no_grad():
        results = trainer.measure()[0]
    size = len(Path(files["eval_data"][0]).read_bytes().strip()) - 4  # two blank lines
    assert results["perplexity/held_0"] == pytest.approx(60)
    assert results["bits_per_byte/held_0"] == pytest.approx(32 * math.log2(60) / size)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_is_read_alone(world, tmp_path, files, family):
    """Other words in document A: every log-probability of document B is the same to the bit."""
    trainer = make_trainer("pretrain", world, tmp_path / "run", family, **files)
    row = next(row for row in trainer.records if len(row.examples) == 2 and len(row.examples[0].tokens) > 4)
    before, after = row.examples
    rng = random.Random(5)
    other = type(before)("other", tuple(rng.randrange(4, 60) for _ in before.tokens), 1)

    def logprobs(*examples):
        batch, columns_A = packed(examples)
        assert batch.lengths == tuple(len(e.tokens) for e in examples)  # nothing is padded
        assert batch.num_tokens == sum(batch.lengths) and len(columns_A) == batch.num_tokens - len(examples)
        with torch.no_grad():
            return trainer.zero(batch, None, columns_A).split([len(e.tokens) - 1 for e in examples])

    (a, b), (c, d) = logprobs(before, after), logprobs(other, after)
    assert not torch.equal(a, c)
    assert torch.equal(b, d)
    (c, d), (e, f) = logprobs(after, before), logprobs(after, other)
    assert torch.equal(c, e) and not torch.equal(d, f)


def test_two_ranks_equal_one(tmp_path, files):
    cases = {
        "all": {"zero": "zero0", "embedding_lr": 1e-3, **files},
        "top": {"zero": "zero2", "top_layers": "1", **files},
        "both": {"zero": "zero1", "family": "llama", "top_layers": "1", "bottom_layers": 1, **files},
    }
    check_two_ranks("pretrain", tmp_path, cases)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_one_under_every_stage(tmp_path, files, family):
    case = {"family": family, "top_layers": "1", "bottom_layers": 1, "embedding_lr": 1e-3, **files}
    check_two_ranks("pretrain", tmp_path, {zero: {"zero": zero, **case} for zero in EVERY_STAGE})


def test_stopped_run_resumes_to_the_bit(world, tmp_path, files, monkeypatch):
    case = {**files, "keep_best": "bits_per_byte_mean", "save_every": 100, "embedding_lr": 1e-3}
    whole = train(make_trainer("pretrain", world, tmp_path / "whole", **case))
    step, calls = ZeroStep.step, []

    def stepping(self, lr):
        calls.append(lr)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, lr)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(ZeroStep, "step", stepping)
        train(make_trainer("pretrain", world, tmp_path / "stopped", **case))
    resumed = train(make_trainer("pretrain", world, tmp_path / "stopped", resume=True, **case))
    assert len(resumed["rows"]) == 2 and resumed["rows"] == whole["rows"][3:]
    assert resumed["result"] == whole["result"]
    assert_same_weights(resumed["weights"], whole["weights"], 0.0)


def test_drawn_counts_documents_and_tokens_by_file(world, tmp_path, files):
    """All rows of one epoch: three of four are of the first file, whatever the sizes."""
    case = {**files, "max_steps": None, "epochs": 1}
    trainer = make_trainer("pretrain", world, tmp_path / "run", **case)
    drawn = [i for step in trainer.steps for i in step]
    out = train(trainer)
    counts = trainer.records.mixture.counts
    assert len(drawn) == sum(counts)
    assert trainer.steps.had(len(trainer.steps))[0] == pytest.approx(0.75 * sum(counts), abs=1)
    for f, name in enumerate(("ne", "en")):
        rows = [row for row in (trainer.records[i] for i in drawn) if row.file == f]
        expected = {"documents": sum(r.documents for r in rows), "tokens": sum(r.predicted for r in rows)}
        assert out["result"]["drawn"][name] == expected
        assert out["rows"][-1][f"drawn/{name}/documents"] == expected["documents"]
        assert out["rows"][-1][f"drawn/{name}/tokens"] == expected["tokens"]


@pytest.mark.parametrize("family", FAMILIES)
def test_which_layers_are_trained(world, tmp_path, files, family):
    before = {name: w.clone() for name, w in tiny_model(family, 4).state_dict().items()}

    def changed(name, **case):
        after = train(make_trainer("pretrain", world, tmp_path / name, family, layers=4, **files, **case))["weights"]
        moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
        return {".".join(n.split(".")[:2]) if n.startswith("layers.") else n.split(".")[0] for n in moved}

    head = set() if family == "bloom" else {"head"}
    embeddings = {"embedding", *head} | ({"embedding_norm"} if family == "bloom" else set())
    layers = [f"layers.{i}" for i in range(4)]
    assert changed("all") == {*embeddings, *layers, "final_norm"}
    assert changed("top", top_layers="1") == {layers[3], "final_norm"}
    assert changed("both", top_layers="2", bottom_layers=1) == {*embeddings, layers[0], *layers[2:], "final_norm"}
    assert changed("none", top_layers="1", bottom_layers=0) == {*embeddings, layers[3], "final_norm"}


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_have_a_rate_of_their_own(world, tmp_path, files, family):
    """The first step of AdamW moves a weight by at most its rate (without decay): the rates can be read off."""
    case = {**files, "weight_decay": 0.0, "warmup_steps": 0, "max_steps": 1, "eps": 1e-12}
    before = {name: w.clone() for name, w in tiny_model(family).state_dict().items()}
    after = train(make_trainer("pretrain", world, tmp_path / "run", family, lr=1e-2, embedding_lr=1e-4, **case))
    for name, weight in after["weights"].items():
        moved = float((weight - before[name]).abs().max())
        rate = 1e-4 if name.startswith(("embedding.", "head.")) else 1e-2
        assert moved == pytest.approx(rate / 2, rel=0.02), name  # of one step of decay over 2: half of the peak


def test_held_out_tokens_do_not_depend_on_the_pack(world, tmp_path, files):
    """The same file measured twice, beside itself, has the same numbers."""
    trainer = make_trainer("pretrain", world, tmp_path / "run", **files)
    once = HeldOutText.read("x", files["eval_data"][0], tiny_tokenizer(), 16, 10_000)
    trainer.heldout = [once, HeldOutText("y", once.path, once.examples, once.bytes, once.documents)]
    with torch.no_grad():
        results = trainer.measure()[0]
    assert results["bits_per_byte/x"] == results["bits_per_byte/y"] == results["bits_per_byte_mean"]
    assert isinstance(packed(once.examples)[0], PackedBatch)
