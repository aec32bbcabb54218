"""PPO: a quiet first step, a frozen trunk, captured = recomputed, one rank = two, controllers, seeds, and it learns."""

import copy
import dataclasses
import json
import math

import pytest
import torch

import engine.training.ppo
from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.training.metrics import Metrics
from engine.training.modules import Policy
from engine.training.ppo_checks import check_rollouts
from engine.training.scorers import use_scores
from tests.engine.training.trainers import (
    EVERY_STAGE,
    FAMILIES,
    assert_same_rows,
    assert_same_weights,
    check_two_ranks,
    make_trainer,
    one_rank,
    prompts,
    share_of_even_words,
    tiny_model,
    train,
    without_clock,
)


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_equal_one(tmp_path):
    """Two iterations; minibatches of one rollout leave a rank without any. ZeRO-3 generates from a gathered copy."""
    cases = {
        "zero0": {"zero": "zero0"}, "zero3": {"zero": "zero3"},
        "all": {"family": "llama", "zero": "zero3", "top_layers": "all", "kl_estimator": "k3"},
    }  # fmt: skip
    check_two_ranks("ppo", tmp_path, {name: {**case, "minibatch_size": 2} for name, case in cases.items()})


@pytest.mark.slow
@pytest.mark.parametrize("top_layers", ["2", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_one_under_every_stage(tmp_path, family, top_layers):
    case = {"family": family, "top_layers": top_layers, "minibatch_size": 2}
    cases = {zero: {"zero": zero, **case} for zero in EVERY_STAGE}
    check_two_ranks("ppo", tmp_path, cases)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 20, "top_p": 0.9}])
@pytest.mark.parametrize("top_layers", ["2", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_step_has_ratio_one_and_zero_kl(world, tmp_path, family, top_layers, sampling):
    """In each iteration training sees what generation sampled from; in the first, the policy is the reference."""
    train(make_trainer("ppo", world, tmp_path / "run", family=family, top_layers=top_layers, **sampling))
    first, second = logged(tmp_path / "run")
    assert abs(first["objective/kl"]) < 1e-6 and first["objective/non_score_reward"] == pytest.approx(0, abs=1e-6)
    assert abs(second["objective/kl"]) > 1e-3
    for row in (first, second):
        assert row["val/first_ratio_error"] < 1e-5
        assert row["rollout/logprob_difference"] < 1e-4
        assert row["val/ratio"] != 1.0 and row["policy/approxkl_avg"] > 1e-6


def test_bfloat16_critic_returns_float32_values(world):
    model = tiny_model("bloom").bfloat16()
    policy = Policy(model, 1)
    torch.nn.init.normal_(policy.value.weight, generator=torch.Generator().manual_seed(0))
    policy.value.bias.data.fill_(-2.0)
    batch = PackedBatch.from_sequences([p.tokens for p in prompts(30)])
    columns_A = torch.arange(batch.num_tokens)[1::2]
    with torch.no_grad():
        trunk_TD = model.run(model.embed(batch), batch, 0, 1)
        value_A = policy(batch, trunk_TD, columns_A, 1.0)[2]
        expected_A = policy.body(batch, trunk_TD, columns_A).double() @ policy.value.weight[0].double() - 2
    torch.testing.assert_close(value_A.double(), expected_A, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "size", "sizes"), [(9, 8, [5, 4]), (5, 2, [3, 2]), (9, 5, [5, 4])])
def test_no_iteration_has_a_single_rollout(world, tmp_path, count, size, sizes):
    """Whitening would take the mean of its advantages away, and with it the sign of its score."""
    trainer = make_trainer("ppo", world, tmp_path / "run", data=prompts(count), batch_size=size, max_steps=None)
    assert [len(step) for step in trainer.steps] == 2 * sizes
    assert [len(ids) for ids in trainer.plan.minibatches(1, 0)] == ([2, 2] if sizes[1] == 4 else [2])


def test_bfloat16(world, tmp_path):
    """Generation reads the weights that the optimizer wrote: its log-probabilities stay close to training's."""
    before = tiny_model("bloom").bfloat16()
    trainer = make_trainer("ppo", world, tmp_path / "run", model=copy.deepcopy(before), lr=0.03, eps=1e-8, max_steps=3)
    outcome = train(trainer)
    for row in outcome["rows"]:
        assert row["rollout/logprob_difference"] < 0.02 and row["val/first_ratio_error"] < 0.02
    assert outcome["rows"][0]["objective/kl"] == pytest.approx(0, abs=0.02)
    assert outcome["rows"][-1]["objective/kl"] > 0.5
    for name, weight in before.state_dict().items():
        trained = name.startswith(("layers.1.", "layers.2.", "final_norm."))
        assert torch.equal(outcome["weights"][name], weight) is not trained, name


@pytest.mark.parametrize("family", FAMILIES)
def test_only_top_layers_change(world, tmp_path, family):
    """Lower layers, embeddings and head keep their bits; every weight of the top and of the value head moves."""
    before = tiny_model(family, layers=5).state_dict()
    weights = train(make_trainer("ppo", world, tmp_path / "run", family=family, layers=5))["weights"]
    assert all(weights.pop(name).abs().max() > 0 for name in ("value.weight", "value.bias"))
    assert weights.keys() == before.keys()
    for name, weight in weights.items():
        trained = name.startswith(("layers.3.", "layers.4.", "final_norm."))
        assert torch.equal(weight, before[name]) is not trained, name


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_change_when_all_are_trained(world, tmp_path, family):
    before = tiny_model(family).state_dict()
    weights = train(make_trainer("ppo", world, tmp_path / "run", family=family, top_layers="all"))["weights"]
    assert [name for name in before if torch.equal(weights[name], before[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_trunk_equals_recomputed_trunk(world, tmp_path, family):
    """The frozen layers over the whole rollout in one pack give the same losses as what generation kept of them."""
    trainer = make_trainer("ppo", world, tmp_path / "run", family=family, layers=4)
    metrics = Metrics()
    captured = trainer.collect(0, metrics)
    trainer.update(captured, range(5), 1e-2, metrics)  # away from the point where every ratio is 1
    model = trainer.model
    with torch.no_grad():
        trunk_TD = model.run(model.embed(captured.batch), captured.batch, 0, 2)
    torch.testing.assert_close(captured.trunk_TD, trunk_TD, atol=1e-5, rtol=1e-5)
    losses = []
    for experience in (captured, dataclasses.replace(captured, trunk_TD=trunk_TD)):
        metrics = Metrics()
        trainer.update(experience, range(5), 0.0, metrics)  # a learning rate of 0 leaves the weights
        losses.append(metrics.read(world))
    assert abs(losses[0]["val/ratio"] - 1) > 1e-4
    for name in ("loss/policy_avg", "loss/value_avg", "policy/approxkl_avg"):
        assert losses[0][name] == pytest.approx(losses[1][name], abs=1e-6)


def test_experience_columns(world, tmp_path):
    """One rollout a prompt, in order; whitened advantages; the score is all the reward while the KL is 0."""
    trainer = make_trainer("ppo", world, tmp_path / "run", score_clip=0.25, missing_eos_penalty=2.0)
    x = trainer.collect(0, Metrics())
    assert x.rollout_S.tolist() == [0, 1, 2, 3, 4]
    sequences = [tuple(tokens.tolist()) for tokens in x.batch.tokens_T.split(x.batch.lengths)]
    asked = [trainer.prompts[i].tokens for i in trainer.steps[0]]
    assert [s[: len(p)] for s, p in zip(sequences, asked)] == asked
    actions = [int(mask.sum()) for mask in x.action_T.split(x.batch.lengths)]
    assert actions == [len(s) - len(p) for s, p in zip(sequences, asked)]
    assert max(actions) == 12 and min(actions) < 12, "some responses should end early, and some should not"
    advantage_A = x.advantage_T[x.action_T]
    assert float(advantage_A.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantage_A.std(correction=0)) == pytest.approx(1, abs=1e-5)
    final = [min(score, 0.25) - 2.0 * (n == 12) for score, n in zip(x.score_S.tolist(), actions)]
    values = x.value_T[x.action_T].tolist()
    assert values == pytest.approx([sum(final) / len(final)] * len(values)), "the critic starts at the mean"
    assert not x.value_T[~x.action_T].any() and not x.advantage_T[~x.action_T].any()
    rewards = [float(r.sum()) for r in x.reward_T.split(x.batch.lengths)]
    penalties = [2.0 * (s[-1] != trainer.tokenizer.eos_token_id) for s in sequences]
    scores = [min(max(s, -0.25), 0.25) for s in x.score_S.tolist()]
    assert rewards == pytest.approx([s - p for s, p in zip(scores, penalties)], abs=1e-5)


def far_apart(prompt: str, response: str) -> float:
    return 80.0 if share_of_even_words(prompt, response) > 0.4 else 20.0


@pytest.mark.parametrize(("clip", "most", "share"), [(None, 80.0, None), (50.0, 50.0, "some"), (10.0, 10.0, 1.0)])
def test_function_scores_are_clipped_only_on_request(world, tmp_path, clip, most, share):
    """What is logged as a score is what the reward is made of; the share that was clipped is logged beside it."""
    trainer = make_trainer(
        "ppo", world, tmp_path / "run", reward="tests.engine.training.test_ppo:far_apart", score_clip=clip, max_steps=1
    )
    collect, seen = trainer.collect, []
    trainer.collect = lambda *args: seen.append(collect(*args)) or seen[-1]
    (row,) = train(trainer)["rows"]
    x = seen[0]
    scores = x.score_S.tolist()
    assert set(scores) == {min(20.0, most), most}
    rewards = [float(r.sum()) for r in x.reward_T.split(x.batch.lengths)]  # the KL is 0 in the first iteration
    assert rewards == pytest.approx(scores, rel=1e-5)
    assert row["objective/scores"] == pytest.approx(sum(scores) / len(scores))
    share = scores.count(50.0) / len(scores) if share == "some" else share
    assert row.get("rollout/score_clipped") == share
    sampled = [json.loads(line)["score"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert sampled == scores[:4]


def test_clipping_keeps_scores_that_are_not_finite():
    used_S, clipped = use_scores(torch.tensor([math.inf, -math.inf, math.nan, 30.0, -1.0]), 10.0)
    assert used_S.isnan().tolist() == [True, True, True, False, False]
    assert used_S[3:].tolist() == [10.0, -1.0] and int(clipped) == 1


def test_every_rollout_is_used_once_per_ppo_epoch(world, tmp_path):
    trainer = make_trainer("ppo", world, tmp_path / "run", epochs=3, max_steps=None, ppo_epochs=3)
    used = []
    trainer.zero.module.register_forward_pre_hook(
        lambda _, args: used.append(args[0].num_sequences if torch.is_grad_enabled() else 0)
    )
    rows = train(trainer)["rows"]
    assert len(rows) == 3 * 2  # 9 prompts in iterations of 5 and 4
    assert sum(used) == 3 * 3 * 9


def test_fixed_kl_coefficient(world, tmp_path):
    rows = train(make_trainer("ppo", world, tmp_path / "run", kl_controller="fixed", kl_coef=0.07))["rows"]
    assert [row["objective/kl_coef"] for row in rows] == [0.07, 0.07]


def test_adaptive_kl_coefficient(world, tmp_path):
    """Ziegler et al. 2019: down by the clipped 20 % error at KL 0, then by the error that was observed."""
    changes = {"kl_controller": "adaptive", "kl_coef": 0.1, "kl_target": 0.05, "kl_horizon": 50.0, "lr": 3e-3}
    trainer = make_trainer("ppo", world, tmp_path / "run", epochs=3, max_steps=4, **changes)
    rows = train(trainer)["rows"]
    coef = 0.1
    for row, ids in zip(rows, trainer.steps):
        assert row["objective/kl_coef"] == pytest.approx(coef)
        assert row["objective/non_score_reward"] == pytest.approx(-coef * row["objective/kl"], abs=1e-6)
        coef *= 1 + min(max(row["objective/kl"] / 0.05 - 1, -0.2), 0.2) * len(ids) / 50
    assert rows[1]["objective/kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 5 / 50))
    assert rows[-1]["objective/kl_coef"] > rows[-2]["objective/kl_coef"]


def test_missing_eos_penalty(world, tmp_path):
    """The penalty is in the reward, not in the score that is shown."""
    rows = [
        train(make_trainer("ppo", world, tmp_path / str(p), missing_eos_penalty=p, max_steps=1))["rows"][0]
        for p in (0.0, 1.5)
    ]
    missing = 1 - rows[0]["rollout/ended_with_eos"]
    assert 0 < missing < 1
    assert rows[1]["objective/scores"] == rows[0]["objective/scores"]
    difference = rows[0]["objective/rlhf_reward"] - rows[1]["objective/rlhf_reward"]
    assert difference == pytest.approx(1.5 * missing, abs=1e-5)


def test_same_seed_gives_same_bits(world, tmp_path):
    """metrics.jsonl, but for what the clock says, and the weights; another seed gives other numbers."""
    texts, weights = [], []
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        weights.append(train(make_trainer("ppo", world, tmp_path / name, seed=seed))["weights"])
        texts.append(json.dumps([without_clock(row) for row in logged(tmp_path / name)]))
    assert texts[0] == texts[1] != texts[2]
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("first", "again", "other")]
    assert samples[0] == samples[1] != samples[2]


def test_result_is_independent_of_microbatch_size_and_slots(world, tmp_path):
    small = train(make_trainer("ppo", world, tmp_path / "small"))
    large = train(make_trainer("ppo", world, tmp_path / "large", tokens_per_microbatch=10_000, slots=64))
    assert_same_rows(small["rows"], large["rows"], "microbatches")
    assert_same_weights(small["weights"], large["weights"], 1e-6)


@pytest.fixture
def alone(monkeypatch):
    """A world may say that it has two ranks, of which only one is there to look for the run's files."""
    monkeypatch.setattr(engine.run.folder, "check_shared", lambda file, world: None)


@pytest.mark.usefixtures("alone")
def test_random_streams_are_distinct(world, tmp_path, monkeypatch):
    """Also where a rest smaller than the ranks joins the iteration before: here the third prompt of each epoch."""
    asked, generate = [], engine.training.ppo.generate

    def spy(model, requests, *rest, **options):
        asked.extend((r.prompt_id, r.sample_id) for r in requests)
        return generate(model, requests, *rest, **options)

    monkeypatch.setattr(engine.training.ppo, "generate", spy)
    for rank in range(2):
        trainer = make_trainer(
            "ppo", dataclasses.replace(world, rank=rank, size=2), tmp_path / str(rank),
            data=prompts(3), batch_size=2, epochs=3, max_steps=None,
        )  # fmt: skip
        for iteration in range(len(trainer.steps)):
            trainer.collect(iteration, Metrics())
    assert sorted(asked) == [(prompt, sample) for prompt in range(3) for sample in range(3)]


def test_fewer_rollouts_than_ranks_is_an_error():
    with pytest.raises(UserError, match="9 prompts in iterations of 2 leave one of 3 ranks"):
        check_rollouts(9, 2, 3)
    with pytest.raises(UserError, match="2 prompts in iterations of 64 leave one of 3 ranks"):
        check_rollouts(2, 64, 3)
    with pytest.raises(UserError, match="there is one prompt: .*give 2 prompts or more"):
        check_rollouts(1, 64, 1)
    check_rollouts(9, 3, 3)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_adding_a_constant_to_scores_changes_nothing(world, tmp_path, critic):
    """A reward and the same reward plus 5 give the same policy: the critic starts at the mean score."""
    plain, shifted = (
        train(make_trainer(
            "ppo", world, tmp_path / name, reward=f"tests.engine.training.trainers:{name}", critic=critic, max_steps=3,
            kl_coef=0.0, kl_controller="fixed",
        ))
        for name in ("share_of_even_words", "share_of_even_words_plus_5")
    )  # fmt: skip
    for name, weight in plain["weights"].items():
        torch.testing.assert_close(shifted["weights"][name], weight, atol=1e-4, rtol=0)


def test_constant_score_teaches_almost_nothing(world, tmp_path):
    """Its advantages are the KL penalty and the critic's rounding, not the distance from a value of 0."""
    trainer = make_trainer("ppo", world, tmp_path / "run", reward="tests.engine.training.trainers:constant_reward")
    x = trainer.collect(0, Metrics())
    assert trainer.policy.value_offset == pytest.approx(1.0)
    assert (x.value_T[x.action_T] == 1.0).all()
    assert ((x.return_T - x.value_T)[x.action_T]).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["bloom", pytest.param("llama", marks=pytest.mark.slow)])
def test_learns_a_checkable_task(world, tmp_path, family):
    """The reward is the share of words with an even number: from below one half to well above."""
    trainer = make_trainer(
        "ppo", world, tmp_path / "run", family=family, data=prompts(64), batch_size=32, minibatch_size=16, epochs=100,
        max_steps=30, lr=1e-2, eps=1e-8, schedule="constant", warmup_steps=0, kl_coef=0.01, slots=32,
        tokens_per_microbatch=2000,
    )  # fmt: skip
    scores = [row["objective/scores"] for row in train(trainer)["rows"]]
    assert scores[0] < 0.5
    assert sum(scores[-5:]) / 5 > 0.7
