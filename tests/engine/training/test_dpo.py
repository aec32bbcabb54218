"""DPO: the first step at its reference, steps against transformers, two ranks equal one, resume, what is learned."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.base.errors import UserError
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.models import load_model, save_model
from engine.models.names import TABLES, written_name
from engine.text.encoding import Example, RankedExamples
from tests.engine.training.stopping import make, stopped
from tests.engine.training.trainers import (
    EOS,
    EVERY_STAGE,
    FAMILIES,
    assert_same_rows,
    assert_same_weights,
    check_two_ranks,
    make_trainer,
    one_rank,
    rankings,
    tiny_model,
    tiny_tokenizer,
    train,
    words,
)

ZERO_AT_FIRST = ("rewards/chosen", "rewards/rejected", "rewards/margins", "log_ratio/chosen", "log_ratio/rejected")


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def response_logprob(logits_of, example):
    """Sum of the log-probabilities of a response's tokens, from all logits of the sequence alone."""
    logprob_TV = logits_of(example.tokens).log_softmax(-1)
    return sum(logprob_TV[t - 1, example.tokens[t]] for t in range(max(1, example.prompt_len), len(example.tokens)))


def logits_in_transformers(peer):
    return lambda tokens: peer(torch.tensor([tokens])).logits[0].double()


def test_two_ranks_equal_one(tmp_path):
    """Five steps on uneven data, one of them with a single prompt, so that a rank has nothing to do."""
    cases = {
        "zero0": {"zero": "zero0", "sft_coef": 0.5}, "zero3": {"zero": "zero3", "top_layers": "all"},
        "llama": {"family": "llama", "zero": "zero2", "dpo_loss": "plackett-luce"},
    }  # fmt: skip
    check_two_ranks("dpo", tmp_path, cases)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_one_under_every_stage(tmp_path, family):
    check_two_ranks("dpo", tmp_path, {zero: {"zero": zero, "family": family} for zero in EVERY_STAGE})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [
    {}, {"top_layers": "all"}, {"trunk_cache": 0.0}, {"tokens_per_microbatch": 10_000}, {"bfloat16": True},
    {"length_normalised": True},
    *(pytest.param(x, marks=pytest.mark.slow) for x in ({"trunk_cache": 5e-6}, {"bfloat16": True, "zero": "zero3"})),
])  # fmt: skip
def test_first_step_starts_at_the_reference(world, tmp_path, family, changes):
    """Log ratios of 0 to the bit and a loss of log 2, in any pack; they leave 0 with the first update."""
    heldout = rankings(4, 5)
    outcome = train(make("dpo", world, tmp_path / "run", family=family, heldout=heldout, eval_every=1, **changes))
    first, second = outcome["rows"][:2]
    assert [first[name] for name in ZERO_AT_FIRST] == [0.0] * len(ZERO_AT_FIRST)
    assert first["loss/dpo"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/accuracies"] == 0
    assert all(second[name] for name in ZERO_AT_FIRST)
    result = outcome["result"]
    assert result["heldout_loss_before"] == pytest.approx(math.log(2), abs=1e-7) and result["accuracy_before"] == 0.5
    assert result["loss_first"] == first["loss/dpo"] and result["heldout_loss"] != result["heldout_loss_before"]


def test_each_response_is_forwarded_once_per_epoch_and_once_for_the_reference(world, tmp_path):
    ranked = rankings()
    trainer = make_trainer("dpo", world, tmp_path / "run", data=ranked, heldout=[], epochs=3, max_steps=None)
    packs = {True: [], False: []}

    def note(_, args):
        assert torch.is_grad_enabled() or not packs[True], "the reference comes before the first step"
        packs[torch.is_grad_enabled()].append([tuple(t.tolist()) for t in args[0].tokens_T.split(args[0].lengths)])

    trainer.zero.module.register_forward_pre_hook(note)
    train(trainer)
    assert packs[False] == packs[True][: len(packs[False])], "other packs would round otherwise"
    forwarded = {with_gradient: sorted(sum(there, [])) for with_gradient, there in packs.items()}
    once = sorted(e.tokens for r in ranked for e in r.examples)
    assert forwarded == {False: once, True: sorted(3 * once)}


def test_reference_of_a_short_run_is_computed_only_where_it_is_used(world, tmp_path):
    trainer = make_trainer("dpo", world, tmp_path / "run", heldout=[], epochs=3, max_steps=1)
    train(trainer)
    used = [row for i in trainer.steps[0] for row in range(trainer.first[i], trainer.first[i + 1])]
    assert 0 < len(used) < len(trainer.reference_S)
    assert trainer.reference_S.isfinite().nonzero()[:, 0].tolist() == sorted(used)


CASES = {
    "pairs": {}, "all": {"top_layers": "all"}, "plackett-luce": {"dpo_loss": "plackett-luce"},
    "everything": {"label_smoothing": 0.1, "sft_coef": 0.7, "length_normalised": True, "beta": 2.0},
}  # fmt: skip


def loss_in_transformers(peer, reference, ranking, case):
    """One ranking's loss, response by response, in float64."""
    own = [response_logprob(logits_in_transformers(peer), e) for e in ranking.examples]
    with torch.no_grad():
        theirs = [response_logprob(logits_in_transformers(reference), e) for e in ranking.examples]
    sizes = [len(e.tokens) - e.prompt_len for e in ranking.examples]
    reward = [case.get("beta", 0.1) * (a - b) for a, b in zip(own, theirs)]
    if case.get("length_normalised"):
        reward = [r / n for r, n in zip(reward, sizes)]
    below = [[j for j, low in enumerate(ranking.ranks) if low > rank] for rank in ranking.ranks]
    if case.get("dpo_loss") == "plackett-luce":
        return sum(torch.stack([reward[i], *(reward[j] for j in js)]).logsumexp(0) - reward[i]
                   for i, js in enumerate(below))  # fmt: skip
    smoothing, terms = case.get("label_smoothing", 0.0), []
    for i, js in enumerate(below):
        for j in js:
            sigmoid = torch.sigmoid(reward[i] - reward[j])
            terms.append(-(1 - smoothing) * sigmoid.log() - smoothing * (1 - sigmoid).log())
    best = [-own[i] / sizes[i] for i, rank in enumerate(ranking.ranks) if rank == min(ranking.ranks)]
    return sum(terms) / len(terms) + case.get("sft_coef", 0.0) * sum(best) / len(best)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_two_steps_equal_transformers(world, tmp_path, family, name):
    """Loss, gradient norm and all weights of two steps of AdamW on transformers' model, another one as reference."""
    case, ranked = CASES[name], rankings()
    save_model(tiny_model(family), tmp_path / "m", tiny_tokenizer())
    peer, reference = (AutoModelForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager") for _ in "ab")
    trainer = make_trainer(
        "dpo", world, tmp_path / "run", family=family, data=ranked, heldout=[], max_steps=2, schedule="constant",
        warmup_steps=0, **case,
    )  # fmt: skip
    steps, outcome = trainer.steps, train(trainer)
    table = TABLES[trainer.model.config.model_type]
    moved = {written_name(table, n.removeprefix("body.").removeprefix("model.")) for n in trainer.zero.trained}
    parameters = {k: p for k, p in peer.named_parameters() if k in moved or f"transformer.{k}" in moved}
    for p in peer.parameters():
        p.requires_grad_(any(p is q for q in parameters.values()))
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-3)
    for indices, row in zip(steps, outcome["rows"], strict=True):
        adamw.zero_grad()
        loss = sum(loss_in_transformers(peer, reference, ranked[i], case) for i in indices) / len(indices)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        adamw.step()
        assert row["loss/dpo"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert len(parameters) == len(trainer.zero.trained)
    assert_same_weights(saved, {name: weight.detach() for name, weight in peer.state_dict().items()}, 1e-5)


def test_metrics_by_hand(world, tmp_path):
    """Means over the pairs of each ranking, then over rankings, of the second step's weights."""
    ranked = rankings(2)
    trainer = make_trainer("dpo", world, tmp_path / "run", data=ranked, heldout=[], max_steps=2)
    losses, found = trainer.loss, []

    def loss(records, indices):
        found.extend(zip(records, trainer.logprobs(records, indices).split([len(r.examples) for r in records])))
        return losses(records, indices)

    trainer.loss = loss
    row = train(trainer)["rows"][1]
    reference = {r.id: trainer.reference_S[trainer.first[i] : trainer.first[i + 1]] for i, r in enumerate(ranked)}
    sums = dict.fromkeys((*ZERO_AT_FIRST, "rewards/accuracies", "logps/chosen", "logps/rejected"), 0.0)
    for ranking, logprob_S in found[2:]:
        ratio = (logprob_S - reference[ranking.id]).tolist()
        pairs = [(i, j) for i, a in enumerate(ranking.ranks) for j, b in enumerate(ranking.ranks) if a < b]
        for i, j in pairs:
            values = {
                "rewards/chosen": 0.1 * ratio[i], "rewards/rejected": 0.1 * ratio[j], "log_ratio/chosen": ratio[i],
                "log_ratio/rejected": ratio[j], "rewards/margins": 0.1 * (ratio[i] - ratio[j]),
                "rewards/accuracies": float(ratio[i] > ratio[j]), "logps/chosen": float(logprob_S[i]),
                "logps/rejected": float(logprob_S[j]),
            }  # fmt: skip
            sums = {name: total + values[name] / len(pairs) / 2 for name, total in sums.items()}
    for name, value in sums.items():
        assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_measures_by_hand(world, tmp_path, family):
    """Of the exported model against the first one: loss, both shares, and the intervals over rankings."""
    heldout = rankings(6, 5)
    save_model(tiny_model(family), tmp_path / "m", tiny_tokenizer())
    trainer = make_trainer("dpo", world, tmp_path / "run", family=family, heldout=heldout, eval_every=2)
    outcome = train(trainer)
    assert [step for step, _ in outcome["measured"]] == [0, 2, 4, 5]
    own, theirs = (
        logits_in_transformers(AutoModelForCausalLM.from_pretrained(tmp_path / name)) for name in ("run/model", "m")
    )
    values = {"heldout_loss": [], "accuracy": [], "likelier": []}
    for r in heldout:
        with torch.no_grad():
            logprob = [float(response_logprob(own, e)) for e in r.examples]
            ratio = [a - float(response_logprob(theirs, e)) for a, e in zip(logprob, r.examples)]
        pairs = [(i, j) for i, a in enumerate(r.ranks) for j, b in enumerate(r.ranks) if a < b]
        values["heldout_loss"].append(
            sum(math.log1p(math.exp(-0.1 * (ratio[i] - ratio[j]))) for i, j in pairs) / len(pairs)
        )
        values["accuracy"].append(sum(ratio[i] > ratio[j] for i, j in pairs) / len(pairs))
        values["likelier"].append(sum(logprob[i] > logprob[j] for i, j in pairs) / len(pairs))
    for name, each in values.items():
        mean = torch.tensor(each, dtype=torch.float64)
        assert outcome["result"][name] == pytest.approx(float(mean.mean()), rel=1e-4), name
        half = 1.96 * float(mean.std()) / len(each) ** 0.5
        assert outcome["result"]["half_intervals"][name] == pytest.approx(half, rel=1e-2), name
    last = outcome["measured"][-1][1]
    assert (last["eval/loss"], last["eval/accuracy"]) == (
        outcome["result"]["heldout_loss"],
        outcome["result"]["accuracy"],
    )


def test_a_single_held_out_ranking_has_no_interval(world, tmp_path):
    result = train(make_trainer("dpo", world, tmp_path / "run", heldout=rankings(1, 5)))["result"]
    assert "accuracy" in result and "half_intervals" not in result


def test_result_is_independent_of_microbatch_size(world, tmp_path):
    for loss in ("pairs", "plackett-luce"):
        small = train(make_trainer("dpo", world, tmp_path / loss / "small", tokens_per_microbatch=150, dpo_loss=loss))
        large = train(make_trainer("dpo", world, tmp_path / loss / "large", tokens_per_microbatch=9_000, dpo_loss=loss))
        assert_same_rows(small["rows"], large["rows"], "microbatches")
        assert_same_weights(small["weights"], large["weights"], 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_top_layers_are_trained(world, tmp_path, family):
    before = tiny_model(family, layers=4).state_dict()
    after = train(make_trainer("dpo", world, tmp_path / "run", family=family, layers=4))["weights"]
    for name, weight in before.items():
        trained = name.startswith(("layers.2.", "layers.3.", "final_norm."))
        assert torch.equal(after[name], weight) is not trained, name


def test_resumed_run_takes_the_reference_from_its_checkpoint(world, tmp_path):
    stopped("dpo", world, tmp_path / "run", 2)
    trainer = make("dpo", world, tmp_path / "run", resume=True)
    trainer._compute_references = None  # calling it would fail
    train(trainer)


def test_resumed_run_with_other_data_is_refused(world, tmp_path):
    """With --override too: the reference of other data needs the weights before training."""
    stopped("dpo", world, tmp_path / "run", 2, max_steps=2)
    first, *others = rankings()
    swapped = [dataclasses.replace(first, examples=first.examples[::-1]), *others]  # as many responses as before
    for changes in ({"data": rankings(5, 8)}, {"data": swapped}, {"heldout": rankings(4, 9)}, {"max_steps": 5}):
        trainer = make("dpo", world, tmp_path / "run", resume=True, override=True, **{"max_steps": 2, **changes})
        with pytest.raises(UserError, match="does not hold the reference's log-probabilities of this run's data"):
            train(trainer)


ANSWERS = (40, 41, 42, 43)


def answered(rng, count):
    """Prompts of three words, and the answer that is right for each: it depends on the last word, one of four."""
    texts = [(*words(rng, 2, below=32), 4 + rng.randrange(4)) for _ in range(count)]
    return [(text, ANSWERS[text[-1] - 4]) for text in texts]


def sampled_accuracy(model, asked):
    requests = [Request(text, i, n, 4) for i, (text, _) in enumerate(asked) for n in range(4)]
    answers = generate(model, requests, Sampling(1.0, 0, 1.0), 5, [EOS], 64, None)
    return sum(list(a.tokens) == [asked[n // 4][1], EOS] for n, a in enumerate(answers)) / len(requests)


@pytest.mark.parametrize(("loss", "top_layers", "lr"), [
    ("pairs", "all", 5e-3), pytest.param("plackett-luce", "2", 2e-2, marks=pytest.mark.slow),
])  # fmt: skip
def test_learns_a_checkable_task(world, tmp_path, loss, top_layers, lr):
    """A model that answers at random learns the preferred answers; with shuffled ranks it does not."""
    rng = random.Random(11)
    asked = answered(rng, 320)
    guesses = [
        Example(str(n), (*text, answer, EOS), 3) for n, (text, _) in enumerate(asked) for answer in ANSWERS
    ]  # each answer equally often
    shared = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.0, "max_steps": None, "tokens_per_microbatch": 2048}
    train(make_trainer("sft", world, tmp_path / "sft", data=guesses, batch_size=128, epochs=4, **shared))
    train_on, held = asked[:256], asked[256:]
    before = sampled_accuracy(load_model(tmp_path / "sft" / "model"), held)
    assert 0.15 < before < 0.35

    def ranked(pairs, shuffled):
        made = []
        for i, (text, right) in enumerate(pairs):
            ranks = [1 if answer == right else 2 for answer in ANSWERS]
            rng.shuffle(ranks) if shuffled else None
            examples = tuple(Example(str(i), (*text, answer, EOS), 3) for answer in ANSWERS)
            made.append(RankedExamples(str(i), examples, tuple(ranks)))
        return made

    after = {}
    for shuffled in (False, True):
        folder = tmp_path / f"dpo-{shuffled}"
        outcome = train(make_trainer(
            "dpo", world, folder, model=load_model(tmp_path / "sft" / "model"), data=ranked(train_on, shuffled),
            heldout=ranked(held, False), batch_size=16, epochs=3, dpo_loss=loss, top_layers=top_layers,
            **{**shared, "lr": lr},
        ))  # fmt: skip
        after[shuffled] = sampled_accuracy(load_model(folder / "model"), held), outcome["result"]["accuracy"]
    assert after[False][0] > 0.7 and after[False][1] > 0.95, after
    assert after[True][0] < 0.4 and 0.35 < after[True][1] < 0.65, after
