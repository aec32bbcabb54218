"""PPO on a trunk in 8 or 4 bits: ratio 1 and KL 0 at the start, export, resume, ranks, a shared reward model."""

import pytest
import torch

from engine.base.errors import UserError
from engine.models import load_model, save_model
from engine.models.quantised import quantise_trunk, stored_weights
from engine.training.modules import RewardModule
from engine.training.scorers import RewardModelScorer
from tests.engine.training.stopping import make, stopped
from tests.engine.training.trainers import (
    FAMILIES,
    make_trainer,
    one_rank,
    outcomes,
    settings,
    tiny_model,
    tiny_tokenizer,
    train,
)
from tests.ranks import run_ranks


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def quantised(trunk_dtype, family="bloom"):
    model = tiny_model(family)
    quantise_trunk(model, 1, trunk_dtype)
    return model


@pytest.mark.parametrize("trunk_dtype", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ratio_is_one_and_kl_zero_at_the_start_and_the_export_is_what_was_trained(world, tmp_path, family, trunk_dtype):
    model = quantised(trunk_dtype, family)
    before = {n: w.detach().clone() for n, w in stored_weights(model)}
    trainer = make_trainer("ppo", world, tmp_path / "run", family, model=model, ppo_epochs=1, minibatch_size=5)
    first = train(trainer)["rows"][0]
    assert first["val/first_ratio_error"] < 1e-5 and first["rollout/logprob_difference"] < 1e-4
    assert abs(first["objective/kl"]) < 1e-6
    assert all(torch.equal(w, before[n]) for n, w in stored_weights(model) if n.startswith("layers.0."))
    exported = load_model(trainer.run.model_dir)
    assert torch.equal(exported.layers[0].get_submodule("mlp_norm").weight, model.layers[0].mlp_norm.weight)
    name = {"bloom": "qkv", "llama": "down"}[family]
    assert torch.equal(exported.layers[0].get_submodule(name).weight, model.layers[0].get_submodule(name).weight)
    assert torch.equal(exported.layers[2].get_submodule(name).weight, model.layers[2].get_submodule(name).weight)


@pytest.mark.parametrize("trunk_dtype", ["int8", "int4"])
def test_resume_equals_never_stopping(world, tmp_path, trunk_dtype):
    whole = train(make("ppo", world, tmp_path / "whole", model=quantised(trunk_dtype)))
    stopped("ppo", world, tmp_path / "stopped", 3, model=quantised(trunk_dtype))
    resumed = train(make("ppo", world, tmp_path / "stopped", model=quantised(trunk_dtype), resume=True))
    assert resumed["weights"].keys() == whole["weights"].keys()
    assert all(torch.equal(w, resumed["weights"][n]) for n, w in whole["weights"].items())


def test_a_reward_model_of_the_same_base_shares_the_quantised_trunk(tmp_path):
    base = tiny_model("bloom")
    save_model(base, tmp_path, tiny_tokenizer(), RewardModule.new_score_weight(base, 0))
    policy = quantised("int8")
    assert RewardModelScorer(tmp_path, policy, 1, tiny_tokenizer(), 64, False).shares_trunk
    with torch.no_grad():
        policy.layers[0].qkv.codes[0, 0] += 1
    assert not RewardModelScorer(tmp_path, policy, 1, tiny_tokenizer(), 64, False).shares_trunk


def test_two_ranks_under_zero_3_equal_one(tmp_path):
    cases = {"int4": {"zero": "zero3", "model": quantised("int4")}}
    two = run_ranks(outcomes, 2, "ppo", tmp_path / "two", cases)
    with one_rank() as world:
        one = train(make_trainer("ppo", world, tmp_path / "one", model=quantised("int4")))
    for rank in two:
        for mine, theirs in zip(rank["int4"]["rows"], one["rows"], strict=True):
            assert mine["loss/policy_avg"] == pytest.approx(theirs["loss/policy_avg"], abs=1e-5)


def test_no_frozen_layer_is_an_error():
    with pytest.raises(UserError, match="--trunk-dtype is int8 with --top-layers all"):
        settings("ppo", trunk_dtype="int8", top_layers="all")
