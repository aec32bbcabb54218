"""Warnings of PPO: each rule at its limit, said once, kept through a checkpoint; and the numbers they are made of."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from statistics import correlation, pstdev, pvariance

import pytest
import torch

from engine.training.metrics import Metrics
from engine.training.ppo_report import actions_of
from engine.training.warnings import RULES, Watch
from tests.engine.training.trainers import make_trainer, one_rank, train

HEALTHY = {
    "objective/kl": 3.0, "policy/entropy_avg": 2.0, "rollout/empty": 0.0, "rollout/ended_with_eos": 0.9,
    "rollout/score_length_correlation": 0.2, "rollout/response_length": 40.0, "policy/clipfrac_avg": 0.1,
    "val/explained_variance": 0.3, "rollout/score_std": 1.0,
    "rollout/score_clipped": 0.01, "rollout/equal_prompts": 0.3,
}  # fmt: skip
SICK = {
    "exploding_kl": {"objective/kl": 51.0},
    "collapsed_entropy": {"policy/entropy_avg": 0.05},
    "empty_responses": {"rollout/empty": 0.2},
    "all_at_the_limit": {"rollout/ended_with_eos": 0.0},
    "longer_is_better": {"rollout/score_length_correlation": 0.8, "rollout/response_length": 60.0},
    "clip_fraction": {"policy/clipfrac_avg": 0.5},
    "explained_variance": {"val/explained_variance": -0.1},
    "score_clip": {"rollout/score_clipped": 0.2},
    "equal_scores": {"rollout/score_std": 0.0},
    "equal_prompts": {"rollout/equal_prompts": 0.95},
}


def test_every_rule_is_tested():
    assert [rule.name for rule in RULES] == list(SICK)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_warns_once_after_its_patience(rule):
    watch, said = Watch(), []
    assert watch.look(1, HEALTHY) == []
    for iteration in range(2, rule.patience + 9):
        # Through JSON in between, as a run that is continued.
        watch = Watch(**json.loads(json.dumps(asdict(watch))))
        said.append(watch.look(iteration, {**HEALTHY, **SICK[rule.name]}))
    assert [bool(lines) for lines in said] == [i == rule.patience - 1 for i in range(len(said))]
    line = said[rule.patience - 1]
    assert len(line) == 1 and line[0].startswith("warning: ") and "{" not in line[0]
    assert re.search("; (look|check) ", line[0]), "it says what to do"
    assert [w["name"] for w in watch.warned] == [rule.name]
    assert watch.warned[0]["iteration"] == rule.patience + 1


def test_interruption_resets_patience():
    watch = Watch()
    sick = {**HEALTHY, **SICK["clip_fraction"]}
    assert not any(watch.look(i, x) for i, x in enumerate([HEALTHY, sick, sick, HEALTHY, sick, sick], 1))
    assert watch.look(7, sick)


def test_low_start_and_missing_metric_do_not_warn():
    watch, low = Watch(), {**HEALTHY, "policy/entropy_avg": 0.06}
    assert watch.look(1, low) == watch.look(2, {**low, "policy/entropy_avg": 0.05}) == []
    assert Watch().look(1, {}) == []


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def test_the_numbers(world, tmp_path):
    """Explained variance, deviation, correlation with length, largest difference and empty share, by hand."""
    trainer = make_trainer("ppo", world, tmp_path / "run", max_steps=1)
    collect, seen = trainer.collect, []
    trainer.collect = lambda *args: seen.append(collect(*args)) or seen[-1]
    row = train(trainer)["rows"][0]
    x = seen[0]
    lengths = [int(part.sum()) for part in x.action_T.split(x.batch.lengths)]
    assert actions_of(x).tolist() == lengths
    scores = x.score_S.tolist()
    assert row["rollout/score_std"] == pytest.approx(pstdev(scores))
    assert row["rollout/score_length_correlation"] == pytest.approx(correlation(scores, lengths))
    returns, values = x.return_T[x.action_T].tolist(), x.value_T[x.action_T].tolist()
    explained = 1 - pvariance([r - v for r, v in zip(returns, values)]) / pvariance(returns)
    assert row["val/explained_variance"] == pytest.approx(explained, abs=1e-6)
    assert row["rollout/max_logprob_difference"] >= row["rollout/logprob_difference"] > 0
    empty = [n == 1 and t[-1] == trainer.tokenizer.eos_token_id
             for n, t in zip(lengths, (p.tolist() for p in x.batch.tokens_T.split(x.batch.lengths)))]  # fmt: skip
    assert row["rollout/empty"] == pytest.approx(sum(empty) / len(empty))
    assert not any("return" in name for name in row)


def test_warning_is_printed_and_in_result(world, tmp_path):
    trainer = make_trainer(
        "ppo", world, tmp_path / "run", reward="tests.engine.training.test_warnings:nothing", max_steps=2
    )
    said = []
    trainer.console.say = said.append
    result = train(trainer)["result"]
    lines = [line for line in said if line.startswith("warning: ")]
    assert "all rollouts have the same score" in lines[0]
    kept = json.loads((tmp_path / "run" / "result.json").read_text())["warnings"]
    assert kept == result["warnings"] and len(kept) == len(lines)
    assert kept[0] == {"iteration": 1, "name": "equal_scores", "text": "all rollouts have the same score"}


def nothing(prompt: str, response: str) -> float:
    return 0.0


def test_maxima(world):
    metrics = Metrics()
    for value in (2.0, -1.0, 5.0, 3.0):
        metrics.maximum("largest", torch.tensor(value))
    metrics.add("mean", torch.tensor(6.0), 3)
    again = Metrics.of_states([metrics.state()], world)
    joined = Metrics.of_states([metrics.state(), {"mean": [1.0, 1.0], "largest": [9.0]}], world)
    assert metrics.read(world) == again.read(world) == {"mean": 2.0, "largest": 5.0}
    assert joined.read(world) == {"mean": 7 / 4, "largest": 9.0}
    assert metrics.read(world) == {}
