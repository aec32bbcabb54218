"""Several rewards: the weighted sum by hand, trunks, the critic's start, ranks, resume, held-out scores, one weight."""

from __future__ import annotations

import json
import shutil
import statistics
from collections import Counter
from pathlib import Path

import pytest
import torch

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.cli.console import Console
from engine.models import load_model, load_score_weight
from engine.text.encoding import Prompt
from engine.training.heldout import compared, in_words, sample_answers, titles
from engine.training.metrics import Metrics
from engine.training.modules import Policy, RewardModule
from engine.training.scorers import score_moments
from engine.training.weighted_scorers import load_rewards, start_critic
from tests.engine.training.stopping import make, stopped
from tests.engine.training.trainers import (
    EOS,
    check_two_ranks,
    make_trainer,
    one_rank,
    prompts,
    settings,
    share_of_even_words,
    tiny_model,
    tiny_tokenizer,
    train,
)
from tests.reliability.remains import assert_same

EVEN, WORDS = "tests.engine.training.trainers:share_of_even_words", f"{__name__}:words"
BOTH = [f"{EVEN}:0.5", f"{WORDS}:-0.25"]


def words(prompt: str, response: str) -> float:
    """The number of words of a response."""
    return float(len(response.split()))


def is_output(prompt: str, response: str, output: str) -> float:
    return float(response == output) + len(output)


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three reward models: on the trunk of `tiny_model(layers=4)`, and two with trunks of their own."""
    folder = tmp_path_factory.mktemp("models")
    with one_rank() as world:
        train(make_trainer("reward", world, folder / "shared", layers=4, trunk="shared", top_layers=2))
        for name, seed in (("own", 5), ("other", 6)):
            own = {"model": tiny_model("bloom", 3, seed), "trunk": "shared", "top_layers": 1, "max_steps": 1}
            train(make_trainer("reward", world, folder / name, **own))
    return tuple(str(folder / name / "model") for name in ("shared", "own", "other"))


def responses(folder):
    """The responses of each iteration. samples.jsonl has the first four, which are all."""
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [[row["response"] for row in rows if row["step"] == step] for step in (1, 2)], rows


def test_the_score_is_the_weighted_sum_of_two_iterations(world, tmp_path):
    """0.5 times the share of even words, at most 4 of it, minus a quarter of the words, of which 4 count."""
    trainer = make_trainer("ppo", world, tmp_path, reward=BOTH, score_clip=4.0, batch_size=4, data=prompts(8))
    rows, (texts, samples) = train(trainer)["rows"], responses(tmp_path)
    for row, of_step in zip(rows, texts, strict=True):
        even = [share_of_even_words("", text) for text in of_step]
        counts = [min(4.0, words("", text)) for text in of_step]
        expected = [0.5 * e - 0.25 * c for e, c in zip(even, counts)]
        assert row["rollout/score/share_of_even_words"] == pytest.approx(statistics.fmean(even), rel=1e-6)
        assert row["rollout/score/words"] == pytest.approx(statistics.fmean(counts), rel=1e-6)
        assert row["objective/scores"] == pytest.approx(statistics.fmean(expected), rel=1e-6)
        clipped = sum(words("", text) > 4 for text in of_step)
        assert row["rollout/score_clipped/words"] == clipped / 4 > 0
        assert row["rollout/score_clipped/share_of_even_words"] == 0 and row["rollout/score_clipped"] == clipped / 8
        assert not {"rollout/raw_score", "rollout/score/model"} & row.keys()
    expected = [0.5 * share_of_even_words("", t) - 0.25 * min(4.0, words("", t)) for of_step in texts for t in of_step]
    assert [row["score"] for row in samples] == pytest.approx(expected, rel=1e-6)


def test_each_is_normalised_by_its_own_first_rollouts(world, tmp_path):
    changes = {"reward": BOTH, "score_norm": "rollouts", "batch_size": 4, "data": prompts(8)}
    rows = train(make_trainer("ppo", world, tmp_path, **changes))["rows"]
    texts, _ = responses(tmp_path)
    for name, function, weight in (("share_of_even_words", share_of_even_words, 0.5), ("words", words, -0.25)):
        first, second = ([function("", text) for text in of_step] for of_step in texts)
        mean, std = statistics.fmean(first), statistics.pstdev(first)
        for row in rows:
            assert row[f"rollout/score_norm_mean/{name}"] == pytest.approx(mean, rel=1e-6)
            assert row[f"rollout/score_norm_std/{name}"] == pytest.approx(std, rel=1e-5)
        assert rows[0][f"rollout/score/{name}"] == pytest.approx(0, abs=1e-6)
        assert rows[1][f"rollout/score/{name}"] == pytest.approx((statistics.fmean(second) - mean) / std, rel=1e-5)
        assert rows[1][f"rollout/raw_score/{name}"] == pytest.approx(statistics.fmean(second), rel=1e-6)
        for row in rows:
            row["sum"] = row.get("sum", 0.0) + weight * row[f"rollout/score/{name}"]
    for row in rows:
        assert row["objective/scores"] == pytest.approx(row["sum"], abs=1e-6)


def test_equal_scores_of_one_of_them_are_named(world, tmp_path):
    reward = [EVEN, "tests.engine.training.trainers:constant_reward"]
    with pytest.raises(UserError, match="all 5 scores of constant_reward of the first iteration are 1"):
        train(make_trainer("ppo", world, tmp_path, score_norm="rollouts", reward=reward))


def test_one_reward_of_weight_1_is_as_without_a_weight(world, tmp_path):
    """Names and bits; another weight multiplies the score, and names it."""
    bare, one = (train(make_trainer("ppo", world, tmp_path / r, reward=[EVEN + r])) for r in ("", ":1"))
    assert bare["rows"] == one["rows"]
    assert all(torch.equal(weight, bare["weights"][name]) for name, weight in one["weights"].items())
    assert not any(name.startswith("rollout/score/") for name in bare["rows"][0])
    (row, _) = train(make_trainer("ppo", world, tmp_path / "two", reward=[f"{EVEN}:-2"]))["rows"]
    assert row["rollout/score/share_of_even_words"] == pytest.approx(bare["rows"][0]["objective/scores"], rel=1e-6)
    assert row["objective/scores"] == pytest.approx(-2 * bare["rows"][0]["objective/scores"], rel=1e-6)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("own_first", [False, True])
def test_trunks_and_the_critic_of_reward_models(world, tmp_path, models, own_first, offload):
    """Each scores as its saved model, whole. A separate critic starts as the first one, times its weight."""
    shared, own, other = models
    order = [own, other, shared] if own_first else [shared, other, own]
    items = [WORDS, f"{order[0]}:2", f"{order[1]}:-0.5", f"{order[2]}:0.25"]
    trainer = make_trainer(
        "ppo", world, tmp_path / "ppo", layers=4, reward=items, critic="separate", score_clip=100.0,
        reward_offload=offload,
    )  # fmt: skip
    scorer, seen = trainer.scorer, []
    assert [of.shares_trunk for of in scorer.scorers] == [False, *(path == shared for path in order)]
    assert scorer.shares_trunk and (scorer.trunk is not None) is own_first
    assert scorer.names == ["words", *(Path(path).parent.name for path in order)]
    trainer.scorer = lambda *args: seen.append(scorer(*args)) or seen[-1]
    x = trainer.collect(0, Metrics())
    expected = []
    for path in order:
        mean, std = score_moments(Path(path))
        whole = RewardModule(load_model(path), load_score_weight(path))
        with torch.no_grad():
            expected.append((whole(x.batch, None) - mean) / std)
    torch.testing.assert_close(seen[0][1:], torch.stack(expected), atol=1e-4, rtol=1e-4)
    sum_S = seen[0][0] + 2 * expected[0] - 0.5 * expected[1] + 0.25 * expected[2]
    torch.testing.assert_close(x.score_S, sum_S, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        _, _, value_S = trainer.policy(x.batch, x.trunk_TD, x.batch.last_S, 1.0, x.critic_trunk_TD)
    torch.testing.assert_close(value_S - trainer.policy.value_offset, 2 * expected[0], atol=2e-4, rtol=1e-4)


def test_models_that_share_the_trunk_run_their_tops_alone(world, tmp_path, models):
    """By hooks: layers 2 and 3 of each, once over all tokens; the trunk is not there to run."""
    second = shutil.copytree(models[0], tmp_path / "second" / "model")
    reward = [models[0], f"{second}:-1"]
    trainer = make_trainer(
        "ppo", world, tmp_path / "ppo", layers=4, reward=reward, tokens_per_microbatch=10_000, score_clip=100.0
    )
    tokens: Counter = Counter()
    for i, scorer in enumerate(trainer.scorer.scorers):
        assert scorer.shares_trunk and scorer.trunk is None
        for block in [m for m in scorer.module.modules() if hasattr(m, "index")]:
            block.register_forward_pre_hook(
                lambda block, args, i=i: tokens.update({(i, block.index): args[0].shape[0]})
            )
    x = trainer.collect(0, Metrics())
    assert tokens == {(i, layer): x.batch.num_tokens for i in (0, 1) for layer in (2, 3)}
    assert not x.score_S.any(), "equal scores with the weights 1 and -1"


def test_a_critic_of_functions_alone_is_a_copy_of_the_policy():
    model = tiny_model("bloom")
    policy = Policy(model, 1)
    start_critic(policy, load_rewards(settings("ppo", reward=BOTH)[-1].rewards, model, 1, tiny_tokenizer(), 64))
    assert not policy.value.weight.any() and policy.critic is not None


@pytest.mark.parametrize("zero", ["zero0", pytest.param("zero3", marks=pytest.mark.slow)])
def test_two_ranks_equal_one(tmp_path, models, zero):
    case = {"layers": 4, "score_norm": "rollouts", "critic": "separate", "minibatch_size": 2}
    case["reward"] = [f"{EVEN}:2", f"{models[1]}:-0.5", models[0]]
    check_two_ranks("ppo", tmp_path, {zero: {"zero": zero, **case}})


@pytest.mark.parametrize("step", [2, 4])
def test_resumed_run_equals_uninterrupted_run(world, tmp_path, models, step):
    """In an iteration and between two. The normalisation of each reward comes from the first rollouts, not the next."""
    changes = {"reward": [f"{EVEN}:2", f"{WORDS}:-0.5", models[1]], "score_norm": "rollouts", "critic": "separate"}
    train(make("ppo", world, tmp_path / "whole", **changes))
    stopped("ppo", world, tmp_path / "stopped", step, **changes)
    state = json.loads(next((tmp_path / "stopped" / "checkpoints").glob(f"step-*{step}/state.json")).read_text())
    assert state["trainer"]["score_norm"].keys() == {"share_of_even_words", "words", "own"}
    train(make("ppo", world, tmp_path / "stopped", resume=True, **changes))
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_another_list_is_refused_on_resume_and_new_ones_are_normalised_anew(world, tmp_path):
    stopped("ppo", world, tmp_path, 4, reward=BOTH, score_norm="rollouts")
    for other in ([EVEN], BOTH[::-1], [EVEN, WORDS]):
        with pytest.raises(UserError, match="made with other settings .*reward"):
            train(make("ppo", world, tmp_path, reward=other, score_norm="rollouts", resume=True))
    new = [BOTH[1], "tests.engine.training.trainers:share_of_even_words_plus_5"]
    trainer = make("ppo", world, tmp_path, reward=new, score_norm="rollouts", resume=True, override=True)
    train(trainer)
    mean = trainer.run.rows[0]["rollout/score_norm_mean/share_of_even_words_plus_5"]
    assert mean == pytest.approx(trainer.run.rows[0]["rollout/raw_score/share_of_even_words_plus_5"])
    assert trainer.scores.norms[0][0] != trainer.run.rows[0]["rollout/raw_score/words"]


def test_held_out_answers_have_each_score_and_the_sum(world):
    model, tokenizer = tiny_model("bloom"), tiny_tokenizer()
    asked = [Prompt(p.id, p.tokens, p.text, "xyz"[: i + 1]) for i, p in enumerate(prompts(3))]
    ppo = settings("ppo", eval_samples=2, max_new_tokens=6, reward=[*BOTH, f"{__name__}:is_output:10"])[-1]
    scorer = load_rewards(ppo.rewards, model, None, tokenizer, 64)
    found = sample_answers(model, tokenizer, (EOS,), asked, scorer, ppo, None, 0, 6, world, Console(False))
    even = [statistics.fmean(share_of_even_words("", t) for t in row) for row in found.texts]
    counts = [statistics.fmean(words("", t) for t in row) for row in found.texts]
    assert found.measures["score/share_of_even_words"] == pytest.approx(even)
    assert found.measures["score/words"] == pytest.approx(counts)
    assert found.measures["score/is_output"] == [1.0, 2.0, 3.0], "the length of its own record's output"
    sums = [0.5 * e - 0.25 * c + 10 * o for e, c, o in zip(even, counts, (1, 2, 3))]
    assert found.measures["score"] == pytest.approx(sums)
    assert titles(found.measures)["score/words"] == "score on held-out prompts, words"
    assert "score/is output 2.000" in in_words(found.estimates())
    assert compared(found, found)["score/words"]["difference"] == [0.0, 0.0]


def test_scores_of_a_batch_have_a_row_for_each(world):
    model = tiny_model("bloom")
    scorer = load_rewards(settings("ppo", reward=BOTH)[-1].rewards, model, None, tiny_tokenizer(), 64)
    batch = PackedBatch.from_sequences([(5, 6), (5, 7, 8)])
    score_RS = scorer(batch, None, ["p", "p"], ["w4 w5 w6", ""], ["", ""])
    assert score_RS.tolist() == [[pytest.approx(2 / 3), -1.0], [3.0, 0.0]]
    assert scorer.add_up(score_RS).tolist() == pytest.approx([1 / 3 - 0.75, -0.5])
