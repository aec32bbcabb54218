"""Reward training: K forwards and all pairs by hand, moments and accuracy by hand, two ranks equal one, it learns."""

import json
import math
import random
import shutil
import statistics
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import load_model, load_score_weight, save_model
from engine.text.encoding import Example, RankedExamples
from engine.training.heldout import Estimate
from engine.training.modules import RewardModule
from engine.training.scorers import check_reward, load_scorer, score_moments
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


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def scores_one_by_one(score, ranked):
    """[prompt][response]: the score of each sequence in a pack of its own."""
    with torch.no_grad():
        return [[float(score(PackedBatch.from_sequences([e.tokens]))) for e in r.examples] for r in ranked]


def test_two_ranks_equal_one(tmp_path):
    """Five steps on uneven data, one of them with a single prompt, so that a rank has nothing to do."""
    llama = {"family": "llama", "zero": "zero2", "top_layers": 3}
    check_two_ranks("reward", tmp_path, {"zero0": {"zero": "zero0"}, "zero3": {"zero": "zero3"}, "llama": llama})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_one_under_every_stage(tmp_path, family):
    check_two_ranks("reward", tmp_path, {zero: {"zero": zero, "family": family} for zero in EVERY_STAGE})


def test_each_response_is_forwarded_once_per_epoch(world, tmp_path):
    """K sequences a prompt and an epoch, though it has up to K(K-1)/2 pairs."""
    ranked = rankings()
    trainer = make_trainer("reward", world, tmp_path / "run", data=ranked, epochs=3, max_steps=None)
    forwarded = []

    def count(_, args):
        if torch.is_grad_enabled():  # not the measurements before and after
            forwarded.extend(tuple(tokens.tolist()) for tokens in args[0].tokens_T.split(args[0].lengths))

    trainer.zero.module.register_forward_pre_hook(count)
    train(trainer)
    assert sorted(forwarded) == sorted(3 * [e.tokens for r in ranked for e in r.examples])


@pytest.mark.parametrize("family", FAMILIES)
def test_first_loss_counts_all_pairs(world, tmp_path, family):
    """Every pair of different ranks once, averaged within its prompt; prompts weigh equally whatever their K."""
    ranked = rankings(8)
    trainer = make_trainer(
        "reward", world, tmp_path / "run", family=family, data=ranked, batch_size=8, max_steps=1, epochs=1
    )
    losses, right, pairs, ties = [], 0, 0, 0
    one_by_one = scores_one_by_one(lambda batch: trainer.zero.module(batch, trainer.trunk(batch)), ranked)
    for ranking, scores in zip(ranked, one_by_one):
        ordered = sorted(zip(ranking.ranks, scores), key=lambda pair: pair[0])
        terms = []
        for i, (better_rank, better) in enumerate(ordered):
            for worse_rank, worse in ordered[i + 1 :]:
                if better_rank == worse_rank:
                    ties += 1
                    continue
                terms.append(math.log1p(math.exp(worse - better)))
                right += better > worse
        losses.append(sum(terms) / len(terms))
        pairs += len(terms)
    assert ties and len({len(r.examples) for r in ranked}) > 2
    (row,) = train(trainer)["rows"]
    assert row["loss/reward"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert row["reward/accuracy"] == pytest.approx(right / pairs)


def test_new_head_is_normal_and_seeded():
    """Deviation 1 / sqrt(D + 1); drawn from its own generator, so that the seed alone says what it is."""
    wide = SimpleNamespace(hidden_size=40_000)
    torch.manual_seed(0)
    weight_D = RewardModule.new_score_weight(wide, 5)
    assert weight_D.shape == (40_000,) and weight_D.dtype == torch.float32
    assert float(weight_D.std()) == pytest.approx(40_001**-0.5, rel=0.02)
    assert abs(float(weight_D.mean())) < 4 / 40_000
    assert float((weight_D.abs() < 40_001**-0.5).float().mean()) == pytest.approx(0.683, abs=0.01)
    torch.manual_seed(1)
    assert torch.equal(RewardModule.new_score_weight(wide, 5), weight_D)
    assert float(RewardModule.new_score_weight(wide, 6) @ weight_D) == pytest.approx(0, abs=0.03)
    narrow = RewardModule.new_score_weight(SimpleNamespace(hidden_size=3), 5)
    assert torch.equal(narrow / (3 + 1) ** -0.5, torch.randn(3, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("family", FAMILIES)
def test_new_head_scores_have_deviation_about_one(family):
    model, batch = tiny_model(family), PackedBatch.from_sequences([words(random.Random(0), 9)])
    with torch.no_grad():
        scores = [float(RewardModule(model, RewardModule.new_score_weight(model, s))(batch, None)) for s in range(200)]
    assert torch.tensor(scores).std() == pytest.approx(1, abs=0.2)


def test_bfloat16_model_scores_in_float32(world):
    """The head's product is not rounded to bfloat16, where 8 bits would make scores that differ equal."""
    model = tiny_model("llama").bfloat16()
    module = RewardModule(model, 3 * RewardModule.new_score_weight(model, 4))
    rng = random.Random(1)
    batch = PackedBatch.from_sequences([words(rng, 9) for _ in range(200)])
    with torch.no_grad():
        score_S = module(batch, None)
        h_SD = module.body(batch, None, batch.last_S)
    torch.testing.assert_close(score_S.double(), h_SD.double() @ module.score.weight[0].double(), rtol=1e-5, atol=1e-5)
    assert score_S.dtype == torch.float32 and len(set(score_S.tolist())) == len(score_S)


def test_head_of_zeros_scores_all_alike(world, tmp_path):
    """The first loss is log 2, and equal scores order no pair rightly."""
    outcome = train(make_trainer("reward", world, tmp_path / "run", score_weight_D=torch.zeros(32)))
    assert outcome["rows"][0]["loss/reward"] == pytest.approx(math.log(2), rel=1e-6)
    assert outcome["rows"][0]["reward/accuracy"] == 0
    assert outcome["result"]["accuracy_before"] == 0


def test_heldout_accuracy_before_during_and_after(world, tmp_path):
    outcome = train(make_trainer("reward", world, tmp_path / "run", eval_every=2, max_steps=5))
    measured, result = outcome["measured"], outcome["result"]
    assert [step for step, _ in measured] == [0, 2, 4, 5]
    assert [measured[i][1]["eval/accuracy"] for i in (0, -1)] == [result["accuracy_before"], result["accuracy"]]
    nothing = train(make_trainer("reward", world, tmp_path / "nothing", heldout=[], max_steps=5))
    assert nothing["rows"] == outcome["rows"] and nothing["measured"] == []
    assert not {"accuracy", "accuracy_before"} & nothing["result"].keys() and nothing["result"]["score_std"] > 0


def test_heldout_loss_and_accuracy_with_its_interval_by_hand(world, tmp_path):
    """Two rankings share a prompt: they are one unit of the interval."""
    ranked = rankings(5, 5)
    twin = ranked[0]
    twin = RankedExamples("twin", tuple(reversed(twin.examples)), tuple(reversed(twin.ranks)))
    heldout = [*ranked, twin]
    trainer = make_trainer("reward", world, tmp_path / "run", heldout=heldout, max_steps=3)
    outcome = train(trainer)
    losses, right, pairs = [], [0] * 5, [0] * 5
    with torch.no_grad():
        for i, scores in enumerate(scores_one_by_one(lambda b: trainer.zero.module(b, trainer.trunk(b)), heldout)):
            ranks, terms = heldout[i].ranks, []
            for a, b in ((a, b) for a in range(len(ranks)) for b in range(len(ranks)) if ranks[a] < ranks[b]):
                terms.append(math.log1p(math.exp(scores[b] - scores[a])))
                right[i % 5] += scores[a] > scores[b]
                pairs[i % 5] += 1
            losses.append(statistics.fmean(terms))
    result = outcome["result"]
    assert result["heldout_loss"] == pytest.approx(statistics.fmean(losses), rel=1e-5)
    estimate = Estimate.of_ratio(right, pairs)
    assert (result["accuracy"], result["half_intervals"]["accuracy"]) == pytest.approx((estimate.mean, estimate.half))
    assert outcome["measured"][-1][1]["eval/accuracy_half"] == pytest.approx(estimate.half)


def test_accuracy_skips_ties_and_counts_equal_scores_as_wrong(world, tmp_path):
    """Six pairs less one tie: three right, one in the wrong order, one with equal scores."""
    examples = tuple(Example("r", (word, EOS), 1) for word in (4, 5, 6, 7))
    heldout = [RankedExamples("r", examples, (1, 2, 2, 3))]
    trainer = make_trainer("reward", world, tmp_path / "run", heldout=heldout)
    score_of = {4: 1.0, 5: 1.0, 6: 0.0, 7: 0.5}  # 4>5 equal, 4>6 and 4>7 right, 5-6 tie, 5>7 right, 6>7 wrong
    trainer.zero = lambda batch, _: torch.tensor([score_of[t] for t in batch.tokens_T[::2].tolist()])
    assert trainer.measure()[0]["accuracy"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_of_the_training_scores(world, tmp_path, family):
    """Of every training response, under the weights that were saved; the scorer of PPO normalises by them."""
    ranked = rankings()
    trainer = make_trainer("reward", world, tmp_path / "run", family=family, data=ranked)
    result = train(trainer)["result"]
    folder = tmp_path / "run" / "model"
    module = RewardModule(load_model(folder), load_score_weight(folder))
    scores = torch.tensor(
        [s for prompt in scores_one_by_one(lambda b: module(b, None), ranked) for s in prompt], dtype=torch.float64
    )
    assert result["score_mean"] == pytest.approx(float(scores.mean()), abs=1e-6)
    assert result["score_std"] == pytest.approx(float(scores.std(correction=0)), rel=1e-5)
    (tmp_path / "run" / "result.json").unlink()
    shutil.move(folder, tmp_path / "elsewhere")  # what the scores are normalised with travels with the model
    scorer = load_scorer(str(tmp_path / "elsewhere"), tiny_model(family), None, tiny_tokenizer(), 64)
    batch = PackedBatch.from_sequences([e.tokens for r in ranked for e in r.examples])
    torch.testing.assert_close(
        scorer(batch, None, [], []).double(), (scores - scores.mean()) / scores.std(correction=0), atol=1e-4, rtol=1e-4
    )


def reward_model(folder, **moments):
    """A reward model's directory whose config.json has these moments and no others."""
    model = tiny_model("llama")
    save_model(model, folder, tiny_tokenizer(), RewardModule.new_score_weight(model, 1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **moments}))
    return folder


def test_moments_survive_saving_again(tmp_path):
    """Our save_model and transformers' save_pretrained keep them; a language model made from it has none."""
    folder = reward_model(tmp_path / "rm", score_mean=0.25, score_std=2.5)
    save_model(load_model(folder), tmp_path / "ours", tiny_tokenizer(), load_score_weight(folder))
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    assert score_moments(tmp_path / "ours") == score_moments(tmp_path / "theirs") == (0.25, 2.5)
    model = load_model(folder)
    model.head = tiny_model("llama").head
    save_model(model, tmp_path / "lm", tiny_tokenizer())
    assert not {"score_mean", "score_std"} & json.loads((tmp_path / "lm" / "config.json").read_text()).keys()


def test_without_moments_scores_are_raw_with_a_note(tmp_path):
    folder = reward_model(tmp_path / "rm")
    scorer = load_scorer(str(folder), tiny_model("llama"), None, tiny_tokenizer(), 64)
    batch = PackedBatch.from_sequences([words(random.Random(0), 9)])
    module = RewardModule(load_model(folder), load_score_weight(folder))
    with torch.no_grad():
        assert torch.equal(scorer(batch, None, [], []), module(batch, None))
    assert "config.json has no score_mean and score_std" in scorer.note and scorer.clip(None) is None
    reward_model(tmp_path / "normal", score_mean=0.1, score_std=0.5)
    assert load_scorer(str(tmp_path / "normal"), tiny_model("llama"), None, tiny_tokenizer(), 64).note is None


@pytest.mark.parametrize(("mean", "std", "words"), [
    (0.3, 0.0, "score_std 0.0: .* all equal, train it again"),
    (5000.0, 1e-4, "all equal"),
    (0.3, -1.0, "all equal"),
    (0.3, None, "score_std None"),
    ("0.3", 1.0, "score_mean '0.3'"),
    (True, 1.0, "score_mean True"),
])  # fmt: skip
def test_bad_moments_are_refused(tmp_path, mean, std, words):
    folder = reward_model(tmp_path / "rm", score_mean=mean, score_std=std)
    with pytest.raises(UserError, match=words):
        check_reward(str(folder))


def test_moments_use_at_most_4096_rankings(world, tmp_path):
    """The first ones: after 4,096 pairs of scores 0 and 2, one of 100 changes nothing."""
    trainer = make_trainer("reward", world, tmp_path / "run", tokens_per_microbatch=4096)
    pair, last = (
        RankedExamples("r", tuple(Example("r", (word, EOS), 1) for word in chosen), (1, 2))
        for chosen in ((4, 6), (7, 7))
    )
    score_of = {4: 0.0, 6: 2.0, 7: 100.0}
    trainer.zero = lambda batch, _: torch.tensor([score_of[t] for t in batch.tokens_T[::2].tolist()])
    trainer.records, trainer.first = [pair] * 4096 + [last], range(4097)
    assert trainer.score_moments() == pytest.approx((1, 1))
    trainer.records = [pair] * 4095 + [last]
    assert trainer.score_moments()[0] == pytest.approx((4095 + 100) / 4096)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_top_layers_are_trained(world, tmp_path, family):
    before = tiny_model(family, layers=4).state_dict()
    after = train(make_trainer("reward", world, tmp_path / "run", family=family, layers=4, top_layers=2))["weights"]
    for name, weight in before.items():
        trained = name.startswith(("layers.2.", "layers.3.", "final_norm."))
        assert torch.equal(after[name], weight) is not trained, name


def test_bfloat16_follows_float32(world, tmp_path):
    wide = train(make_trainer("reward", world, tmp_path / "float32", model=tiny_model("llama")))
    half = train(make_trainer("reward", world, tmp_path / "bfloat16", model=tiny_model("llama").bfloat16()))
    assert all(weight.dtype == torch.bfloat16 for weight in half["weights"].values())
    losses = [[row["loss/reward"] for row in outcome["rows"]] for outcome in (half, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_result_is_independent_of_microbatch_size(world, tmp_path):
    small = train(make_trainer("reward", world, tmp_path / "small", tokens_per_microbatch=150))
    large = train(make_trainer("reward", world, tmp_path / "large", tokens_per_microbatch=10_000))
    assert_same_rows(small["rows"], large["rows"], "microbatches")
    assert_same_weights(small["weights"], large["weights"], 1e-6)


@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama"])
def test_learns_a_checkable_ranking(world, tmp_path, family):
    """The response with more of one word is better, equal counts tie: above nine in ten pairs right on new prompts."""
    rng, ranked = random.Random(7), []
    while len(ranked) < 320:
        prompt = words(rng, 3)
        responses = [tuple(rng.choice((4, 5, 6, 7)) for _ in range(6)) for _ in range(4)]
        counts = [response.count(7) for response in responses]
        if len(set(counts)) > 1:
            examples = tuple(Example(str(len(ranked)), (*prompt, *response, EOS), 3) for response in responses)
            ranked.append(RankedExamples(str(len(ranked)), examples, tuple(7 - c for c in counts)))
    model = tiny_model(family)
    trainer = make_trainer(
        "reward", world, tmp_path / "run", model=model, data=ranked[:256], heldout=ranked[256:],
        score_weight_D=RewardModule.new_score_weight(model, 4), lr=1e-2, eps=1e-8, batch_size=16, epochs=4,
        max_steps=None, tokens_per_microbatch=2048, top_layers=3,
    )  # fmt: skip
    result = train(trainer)["result"]
    assert result["accuracy_before"] < 0.8
    assert result["accuracy"] > 0.9
