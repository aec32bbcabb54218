"""RLOO and GRPO on the trainer of PPO: two iterations by hand, ranks, resume, pages, it learns; the critic's start."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import engine.training.ppo
from engine.base.errors import UserError
from engine.generation.scheduler import group_by_prompt
from engine.training.guards import file_of, read_kept
from engine.training.metrics import Metrics
from engine.training.replay import groups_of, replay
from tests.engine.training.stopping import make, stopped
from tests.engine.training.trainers import (
    check_two_ranks,
    logits_of,
    make_trainer,
    one_rank,
    prompts,
    tiny_model,
    train,
)
from tests.reliability.remains import assert_same

RLOO = {"advantage": "rloo", "samples_per_prompt": 3, "batch_size": 6, "minibatch_size": 4}
GRPO = {
    "advantage": "grpo", "samples_per_prompt": 2, "batch_size": 6, "minibatch_size": 4, "kl_in": "loss",
    "loss_mean": "sequence",
}  # fmt: skip
VARIANTS = {
    "rloo": RLOO,
    "rloo-token": {**RLOO, "credit": "token", "kl_estimator": "k3"},
    "grpo": GRPO,
    "dr-grpo": {**GRPO, "advantage_scale": "none", "loss_mean": "constant", "kl_estimator": "k2"},
    "dapo": {**GRPO, "loss_mean": "token"},
}


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


class Peer:
    """The same run in plain PyTorch: one sequence at a time through the whole model, torch's AdamW, Python loops.

    It takes from the trainer only which tokens were sampled and which rollouts each update uses.
    """

    def __init__(self, name):
        self.how = {"credit": "sequence", "kl_in": "reward", "loss_mean": "token", "advantage_scale": "std"}
        self.how |= VARIANTS[name]
        self.estimator = self.how.get("kl_estimator") or ("k1" if self.how["kl_in"] == "reward" else "k3")
        self.model = tiny_model("llama")
        self.before = copy.deepcopy(self.model).requires_grad_(False)
        trained = ("layers.1.", "layers.2.", "final_norm.")
        for weight_name, weight in self.model.named_parameters():
            weight.requires_grad_(weight_name.startswith(trained))
        self.weights = [w for w in self.model.parameters() if w.requires_grad]
        groups = [
            {"params": [w for w in self.weights if (w.ndim > 1) is m], "weight_decay": 0.1 * m} for m in (True, False)
        ]
        self.adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-3)

    def logprobs(self, model, tokens, start):
        rows = logits_of(model, tokens)[start - 1 : -1].log_softmax(-1)
        return rows[torch.arange(len(tokens) - start), torch.tensor(tokens[start:])]

    def kl(self, log_ratio):
        k3 = torch.exp(-log_ratio) - 1 + log_ratio
        return {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": k3}[self.estimator]

    @torch.no_grad()
    def collected(self, sequences, starts, scores):
        self.rollouts, returns, rewards = [], [], []
        for tokens, start, score in zip(sequences, starts, scores):
            old, reference = self.logprobs(self.model, tokens, start), self.logprobs(self.before, tokens, start)
            reward = torch.zeros_like(old) if self.how["kl_in"] == "loss" else -0.1 * self.kl(old - reference)
            reward[-1] += score
            rewards.append(reward.tolist()), returns.append(sum(reward.tolist()))
            self.rollouts.append([tokens, start, old, reference, None])
        size = self.how["samples_per_prompt"]
        for i, rollout in enumerate(self.rollouts):
            group = range(i - i % size, i - i % size + size)
            if self.how["advantage"] == "rloo":
                baseline = sum(returns[j] for j in group if j != i) / (size - 1)
                before = [sum(rewards[i][:t]) * (self.how["credit"] == "token") for t in range(len(rewards[i]))]
                rollout[4] = torch.tensor([returns[i] - baseline - b for b in before])
            else:
                mean = sum(returns[j] for j in group) / size
                std = math.sqrt(sum((returns[j] - mean) ** 2 for j in group) / (size - 1)) + 1e-4
                rollout[4] = torch.full(
                    (len(rewards[i]),), (returns[i] - mean) / (std if self.how["advantage_scale"] == "std" else 1)
                )

    def update(self, chosen):
        losses = []
        for tokens, start, old, reference, advantage in (self.rollouts[i] for i in chosen):
            new = self.logprobs(self.model, tokens, start)
            ratio = torch.exp(new - old)
            loss = -torch.min(ratio * advantage, ratio.clip(0.8, 1.2) * advantage)
            losses.append(loss + 0.1 * self.kl(new - reference) if self.how["kl_in"] == "loss" else loss)
        mean = {
            "token": lambda: torch.cat(losses).mean(), "sequence": lambda: sum(x.mean() for x in losses) / len(losses),
            "constant": lambda: sum(x.sum() / 12 for x in losses) / len(losses),
        }[self.how["loss_mean"]]()  # fmt: skip
        self.adamw.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.adamw.step()


@pytest.mark.parametrize("name", VARIANTS)
def test_two_iterations_equal_an_independent_computation(world, tmp_path, name):
    steady = {"schedule": "constant", "warmup_steps": 0, "kl_controller": "fixed", "kl_coef": 0.1}
    trainer, peer = (
        make_trainer("ppo", world, tmp_path / "run", family="llama", data=prompts(8), **steady, **VARIANTS[name]),
        Peer(name),
    )
    collect, update = trainer.collect, trainer.update

    def collected(iteration, metrics):
        x = collect(iteration, metrics)
        sequences = [tokens.tolist() for tokens in x.batch.tokens_T.split(x.batch.lengths)]
        starts = [len(trainer.prompts[trainer.steps[iteration][i]].tokens) for i in x.rollout_S.tolist()]
        assert x.rollout_S.tolist() == list(range(6))
        assert len({tuple(s[:n]) for s, n in zip(sequences, starts)}) == 6 // trainer.ppo.samples_per_prompt
        peer.collected(sequences, starts, x.score_S.tolist())
        return x

    trainer.collect = collected
    trainer.update = lambda x, chosen, *rest: (update(x, chosen, *rest), peer.update(chosen))
    rows = train(trainer)["rows"]
    theirs = dict(peer.model.named_parameters())
    for weight_name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight, theirs[weight_name], rtol=0, atol=2e-5, msg=weight_name)
    assert not torch.equal(theirs["final_norm.weight"], dict(peer.before.named_parameters())["final_norm.weight"])
    for row in rows:
        assert not [k for k in row if k.startswith("val/") or "value" in k]
        assert row["policy/first_ratio_error"] < 1e-5 and ("loss/kl_avg" in row) == (peer.how["kl_in"] == "loss")


def test_nothing_of_a_critic_is_there(world, tmp_path):
    trainer = make_trainer("ppo", world, tmp_path / "run", **RLOO)
    assert not [n for n, _ in trainer.policy.named_parameters() if not n.startswith("body.")]
    x = trainer.collect(0, Metrics())
    assert x.value_T is None and x.return_T is None and not {"value_T", "return_T"} & x.tensors().keys()
    assert "value_offset" not in trainer._state()


def test_two_ranks_equal_one(tmp_path):
    """Whole prompts on a rank; also under ZeRO 2 and 3. K rollouts of a prompt with a critic, too."""
    cases = {
        "rloo": {"zero": "zero0", **RLOO},
        "grpo": {"zero": "zero2", **GRPO},
        "dr": {"zero": "zero3", **VARIANTS["dr-grpo"]},
    }
    cases["gae"] = {
        "zero": "zero0",
        "samples_per_prompt": 2,
        "batch_size": 6,
        "critic_warmup": 1,
        "score_norm": "rollouts",
    }
    check_two_ranks("ppo", tmp_path, cases)


RESUMED = {
    "rloo": (2, RLOO), "grpo-zero2": (4, {**GRPO, "zero": "zero2"}), "rollout": (4, {**GRPO, "during_rollout": 2}),
    "warmup": (2, {"critic_warmup": 1, "critic_lr": 0.01, "score_norm": "rollouts"}),
    "warmup-zero2": (3, {"critic_warmup": 1, "critic": "separate", "zero": "zero2"}),
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_equals_uninterrupted_run(world, tmp_path, name):
    step, changes = RESUMED[name]
    train(make("ppo", world, tmp_path / "whole", **changes))
    stopped("ppo", world, tmp_path / "stopped", step, **changes)
    train(make("ppo", world, tmp_path / "stopped", resume=True, **changes))
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_samples_of_a_prompt_share_pages_and_never_an_address(world, tmp_path, monkeypatch):
    asked, generate = [], engine.training.ppo.generate

    def spy(model, requests, *rest, **options):
        assert [len(group.waiting) for group in group_by_prompt(requests)] == [3] * (len(requests) // 3)
        asked.extend((r.prompt_id, r.sample_id) for r in requests)
        return generate(model, requests, *rest, **options)

    monkeypatch.setattr(engine.training.ppo, "generate", spy)
    data = [p for p in prompts(12) if len(p.tokens) > 1][:4]
    trainer = make_trainer("ppo", world, tmp_path / "run", data=data, **RLOO, epochs=2, max_steps=None)
    for iteration in range(len(trainer.steps)):
        trainer.collect(iteration, Metrics())
    assert sorted(asked) == [(prompt, sample) for prompt in range(4) for sample in range(6)]


@pytest.mark.parametrize("name", ["rloo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_learns_a_checkable_task(world, tmp_path, name):
    """As in test_ppo.py: the share of even words, from below one half to well above."""
    trainer = make_trainer(
        "ppo", world, tmp_path / "run", data=prompts(64), advantage=name, samples_per_prompt=4, batch_size=32,
        minibatch_size=16, epochs=100, max_steps=30, lr=1e-2, eps=1e-8, schedule="constant", warmup_steps=0,
        kl_coef=0.01, slots=32, tokens_per_microbatch=2000,
    )  # fmt: skip
    scores = [row["objective/scores"] for row in train(trainer)["rows"]]
    assert scores[0] < 0.5
    assert sum(scores[-5:]) / 5 > 0.7


@pytest.mark.parametrize("zero", ["zero0", "zero2", "zero3"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_warm_up_trains_only_the_critic(world, tmp_path, critic, zero):
    trainer = make_trainer(
        "ppo", world, tmp_path / "run", critic=critic, critic_warmup=1, critic_lr=0.02, zero=zero, weight_decay=0.5
    )
    start = trainer.zero.state_dict()
    trainer.iterate(0)
    after = trainer.zero.state_dict()
    for name, weight in start.items():
        assert torch.equal(after[name], weight) is name.startswith("body."), name
    moments = {name: x for name, x in trainer.zero.keep().items() if name.startswith("exp_avg:")}
    assert len(moments) == len(start)
    assert all(bool(x.any()) is not name.startswith("exp_avg:body.") for name, x in moments.items())
    trainer.iterate(1)
    last = trainer.zero.state_dict()
    assert any(not torch.equal(last[name], w) for name, w in after.items() if name.startswith("body."))
    first, second = trainer.run.rows
    assert (first["lr"], first["critic_lr"]) == (0.0, 0.01) and second["lr"] > 0
    assert first["objective/kl_coef"] == second["objective/kl_coef"], "the controller waits"


def test_scores_are_normalised_by_the_first_rollouts(world, tmp_path):
    rows = train(make_trainer("ppo", world, tmp_path / "run", score_norm="rollouts"))["rows"]
    assert rows[0]["objective/scores"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["rollout/score_std"] == pytest.approx(1, abs=1e-6)
    assert rows[0]["rollout/raw_score"] == pytest.approx(rows[0]["rollout/score_norm_mean"])
    mean, std = rows[1]["rollout/score_norm_mean"], rows[1]["rollout/score_norm_std"]
    assert mean == rows[0]["rollout/score_norm_mean"]
    assert rows[1]["objective/scores"] == pytest.approx((rows[1]["rollout/raw_score"] - mean) / std, rel=1e-5)


def test_equal_first_scores_cannot_be_normalised(world, tmp_path):
    reward = "tests.engine.training.trainers:constant_reward"
    with pytest.raises(UserError, match="all 5 scores of the first iteration are 1, .*leave the flag out"):
        train(make_trainer("ppo", world, tmp_path / "run", score_norm="rollouts", reward=reward))


def nothing(rollouts, settings):
    return 1.0


def test_own_estimator_must_return_columns(world, tmp_path):
    trainer = make_trainer("ppo", world, tmp_path / "run", advantage=f"{__name__}:nothing")
    with pytest.raises(UserError, match="gave 1.0: return a tensor of one number per token"):
        trainer.collect(0, Metrics())


def test_a_kept_batch_without_a_critic_is_replayed(world, tmp_path):
    """A gradient that is not finite: the batch holds the KL's weight and no value, and replays to the same loss."""
    trainer = make_trainer("ppo", world, tmp_path / "run", kl_coef=0.3, kl_controller="fixed", **GRPO)
    trainer.zero.step = lambda lr: math.nan
    with pytest.raises(UserError, match="step 1: the gradient is not finite"):
        trainer.train()
    note, tensors = read_kept(file_of(tmp_path / "run", 1, 0))
    assert tensors["kl_coef"] == pytest.approx(0.3) and not {"value_T", "value_offset"} & tensors.keys()
    groups = groups_of("ppo", note["ids"], tensors, trainer.ppo)
    results = list(replay(trainer.model, trainer.policy, trainer.split, groups))
    assert len(results) == 3 and not any(r.first_bad for r in results)
    assert "KL loss" in results[0].sizes and "value" not in results[0].sizes
