"""Training on a trunk in 8 or 4 bits: ratio 1 and KL 0 at the start, export, resume, ranks, a shared reward model."""

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
    assert_same_rows,
    assert_same_weights,
    logits_of,
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


BITS = [("int8", "model"), ("int4", "model"), ("model", "int8"), ("int4", "int8"), ("int8", "int4")]


def quantised(trunk_dtype, family="bloom", embedding_dtype="model"):
    model = tiny_model(family)
    quantise_trunk(model, 1, trunk_dtype, embedding_dtype)
    return model


@pytest.mark.parametrize(("trunk_dtype", "embedding_dtype"), BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ratio_is_one_and_kl_zero_at_the_start_and_the_export_is_what_was_trained(
    world, tmp_path, family, trunk_dtype, embedding_dtype
):
    model = quantised(trunk_dtype, family, embedding_dtype)
    before = {n: w.detach().clone() for n, w in stored_weights(model)}
    trainer = make_trainer("ppo", world, tmp_path / "run", family, model=model, ppo_epochs=1, minibatch_size=5)
    first = train(trainer)["rows"][0]
    assert first["val/first_ratio_error"] < 1e-5 and first["rollout/logprob_difference"] < 1e-4
    assert abs(first["objective/kl"]) < 1e-6
    kept = [(n, w) for n, w in stored_weights(model) if n.startswith(("layers.0.", "embedding", "head"))]
    assert any(n.endswith(".codes") for n, _ in kept) and all(torch.equal(w, before[n]) for n, w in kept)
    exported = load_model(trainer.run.model_dir)
    assert torch.equal(exported.embedding.weight, model.embedding.weight)
    assert model.head is None or torch.equal(exported.head.weight, model.head.weight)
    assert torch.equal(exported.layers[0].get_submodule("mlp_norm").weight, model.layers[0].mlp_norm.weight)
    name = {"bloom": "qkv", "llama": "down"}[family]
    assert torch.equal(exported.layers[0].get_submodule(name).weight, model.layers[0].get_submodule(name).weight)
    assert torch.equal(exported.layers[2].get_submodule(name).weight, model.layers[2].get_submodule(name).weight)


@pytest.mark.parametrize(("trunk_dtype", "embedding_dtype"), BITS[1:4])
def test_resume_equals_never_stopping(world, tmp_path, trunk_dtype, embedding_dtype):
    def make_model():
        return quantised(trunk_dtype, embedding_dtype=embedding_dtype)

    whole = train(make("ppo", world, tmp_path / "whole", model=make_model()))
    stopped("ppo", world, tmp_path / "stopped", 3, model=make_model())
    resumed = train(make("ppo", world, tmp_path / "stopped", model=make_model(), resume=True))
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


def test_a_reward_model_trained_on_the_quantised_trunk_shares_it(world, tmp_path):
    """Its export has the values in the model's dtype, and the policy's codes are those of the whole base."""
    model = tiny_model("bloom").bfloat16()
    quantise_trunk(model, 1, "int4")
    trainer = make_trainer("reward", world, tmp_path, model=model, max_steps=2)
    train(trainer)
    policy = tiny_model("bloom").bfloat16()
    quantise_trunk(policy, 1, "int4")
    assert RewardModelScorer(trainer.run.model_dir, policy, 1, tiny_tokenizer(), 64, False).shares_trunk


def test_a_reward_model_shares_the_trunk_of_a_quantised_embedding_too(world, tmp_path):
    """Its export has the embedding's values; a policy with other codes does not share it."""
    trainer = make_trainer("reward", world, tmp_path, max_steps=2, top_layers=2, embedding_dtype="int8")
    train(trainer)
    for embedding_dtype, shares in (("int8", True), ("int4", False)):
        policy = quantised("model", embedding_dtype=embedding_dtype)
        scorer = RewardModelScorer(trainer.run.model_dir, policy, 1, tiny_tokenizer(), 64, False)
        assert scorer.shares_trunk == shares


TRAINED = {"top": {"top_layers": "2"}, "lora": {"lora_rank": 4}, "top-lora": {"lora_rank": 4, "top_layers": "2"}}
STAGES = [("sft", TRAINED[how]) for how in TRAINED] + [("reward", {}), ("dpo", {})]


def with_codes(stage, changes, trunk_dtype, family="bloom", embedding_dtype="model"):
    """The model that a launcher loads for these settings."""
    model = tiny_model(family)
    own = settings(stage, trunk_dtype=trunk_dtype, embedding_dtype=embedding_dtype, **changes)[-1]
    quantise_trunk(model, own.quantised_layers(3), trunk_dtype, embedding_dtype)
    return model


@pytest.mark.parametrize(("stage", "changes"), STAGES)
@pytest.mark.parametrize(("trunk_dtype", "embedding_dtype"), BITS[:4])
@pytest.mark.parametrize("family", ["bloom", pytest.param("llama", marks=pytest.mark.slow)])
def test_the_exported_model_computes_what_was_trained(
    world, tmp_path, stage, changes, trunk_dtype, embedding_dtype, family
):
    model = with_codes(stage, changes, trunk_dtype, family, embedding_dtype)
    before = {n: w.detach().clone() for n, w in stored_weights(model) if n.endswith((".codes", ".scales"))}
    trainer = make_trainer(stage, world, tmp_path / "run", family, model=model, max_steps=2, **changes)
    train(trainer)
    assert before and all(torch.equal(w, before[n]) for n, w in stored_weights(model) if n in before)
    exported, base, sequence = load_model(trainer.run.model_dir), tiny_model(family), list(range(4, 30))
    exported.config.tie_word_embeddings = True  # a reward model has no head: compare what comes before it
    model.config.tie_word_embeddings = base.config.tie_word_embeddings = True
    with torch.no_grad():
        ours, theirs, others = (logits_of(m, sequence) for m in (model, exported, base))
    assert torch.equal(ours, theirs) or "lora_rank" in changes and torch.allclose(ours, theirs, atol=2e-5)
    assert not torch.allclose(ours, others, atol=1e-4)


@pytest.mark.parametrize(("stage", "changes"), STAGES)
def test_every_stage_resumes_to_the_bit(world, tmp_path, stage, changes):
    def make_model():
        return with_codes(stage, changes, "int4")

    whole = train(make(stage, world, tmp_path / "whole", model=make_model(), **changes))
    stopped(stage, world, tmp_path / "cut", 2, model=make_model(), **changes)
    resumed = train(make(stage, world, tmp_path / "cut", model=make_model(), resume=True, **changes))
    assert resumed["rows"] == whole["rows"][2:]
    for name, weight in whole["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name


def test_a_run_on_other_codes_is_not_resumed(world, tmp_path):
    stopped("sft", world, tmp_path, 2, model=with_codes("sft", TRAINED["lora"], "int4"), **TRAINED["lora"])
    with pytest.raises(UserError, match="weights"):
        train(make("sft", world, tmp_path, model=tiny_model("bloom"), resume=True, **TRAINED["lora"]))


def test_dpo_starts_at_the_reference(world, tmp_path):
    model = with_codes("dpo", {}, "int4")
    first = train(make_trainer("dpo", world, tmp_path, model=model, max_steps=1))["rows"][0]
    assert abs(first["rewards/margins"]) < 1e-5 and abs(first["log_ratio/chosen"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_two_ranks_equal_one(tmp_path, stage):
    """ZeRO-3 shards what is trained; PPO's ranks also share out the codes and scales between rollouts."""
    cases = {}
    for how, changes in TRAINED.items() if stage == "sft" else [("top", {})]:
        for zero in ("zero0", "zero3"):
            cases[f"{how}-{zero}"] = {"zero": zero, "trunk_dtype": "int4", **changes}
    two_ranks = run_ranks(outcomes, 2, stage, tmp_path / "two", cases)
    with one_rank() as world:
        for name, case in cases.items():
            one = train(make_trainer(stage, world, tmp_path / "one" / name, **{**case, "zero": "zero0"}))
            for two in (rank[name] for rank in two_ranks):
                assert_same_rows(two["rows"], one["rows"], name)
                assert_same_weights(two["weights"], one["weights"], 1e-6)


@pytest.mark.parametrize(("stage", "changes"), [
    ("ppo", {"top_layers": "all"}), ("sft", {}), ("dpo", {"top_layers": "all"}),
])  # fmt: skip
def test_no_frozen_layer_is_an_error(stage, changes):
    with pytest.raises(UserError, match="--trunk-dtype is int8 and all layers are trained: give --top-layers"):
        settings(stage, trunk_dtype="int8", **changes)
    with pytest.raises(UserError, match="--embedding-dtype is int4 and all weights are trained"):
        settings(stage, embedding_dtype="int4", **changes)


def test_a_model_without_more_layers_than_are_trained_is_an_error():
    for stage in ("sft", "reward", "dpo", "ppo"):
        top = 4 if stage == "reward" else "4"
        own = settings(stage, trunk_dtype="int8", top_layers=top)[-1]
        assert own.quantised_layers(5) == 1
        with pytest.raises(UserError, match="all layers of the model's 4 are trained"):
            own.quantised_layers(4)
    assert settings("sft", trunk_dtype="int8", lora_rank=4, top_layers="2")[-1].quantised_layers(5) == 5
