"""The frozen trunk: run once, kept within its budget, shared by policy, reward and critic, sharded while unread."""

import copy
import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch

from engine.batch import PackedBatch
from engine.cli.console import Console
from engine.distributed.world import start_world
from engine.generation.decode_tape import DecodeTape
from engine.models import build_model, fused, load_model, load_score_weight
from engine.settings import BatchSettings
from engine.training.checkpoint import fingerprint
from engine.training.metrics import Metrics
from engine.training.modules import RewardModule
from engine.training.sharded import HostWeights, ShardedWeights
from engine.training.trunk import FrozenWeights, Trunk, checksums, same_trunk, trunk_parameters
from tests.engine.training.trainers import (
    CONFIGS,
    EVERY_STAGE,
    FAMILIES,
    assert_same_rows,
    assert_same_weights,
    check_two_ranks,
    make_trainer,
    one_rank,
    sft_examples,
    tiny_model,
    train,
)
from tests.ranks import run_ranks

LAYERS = {"bloom": "n_layer", "llama": "num_hidden_layers"}


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def layer_passes(model) -> Counter:
    """Counts forward passes of each block of a model, from now on, by the identity of the block."""
    counts: Counter = Counter()
    for block in model.layers:
        block.register_forward_pre_hook(lambda block, _: counts.update([block.index]))
    return counts


def shared_reward(world, folder: Path, family: str = "bloom", layers: int = 4) -> str:
    """The directory of a reward model trained on the trunk of `tiny_model(family, layers)`."""
    train(make_trainer("reward", world, folder, family=family, layers=layers, trunk="shared", top_layers=2))
    return str(folder / "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_trunk_equals_computed_trunk(world, tmp_path, family):
    """Whole, half and no budget: the same rows, and only the sequences that do not fit are run again."""
    model, sequences = tiny_model(family), [e.tokens for e in sft_examples()]
    batch = PackedBatch.from_sequences([sequences[i] for i in (3, 0, 14, 7)])
    expected = Trunk(model, 2)(batch)
    row_bytes = 32 * 4
    tokens = [len(s) for s in sequences]
    for share, count in ((sum(tokens), 15), (sum(tokens[:8]), 8), (sum(tokens[:8]) - 1, 7), (0, 0)):
        trunk = Trunk(model, 2)
        settings = BatchSettings(4, 2, 64, tokens_per_microbatch=64, trunk_cache=share * row_bytes / 1e9)
        file = tmp_path / f"{share}.bin"
        assert trunk.keep(sequences, file, settings, world, Console(enabled=False)) == count
        assert not file.exists(), "the file's name goes as soon as it is mapped"
        passes = layer_passes(model)
        torch.testing.assert_close(trunk(batch, [3, 0, 14, 7]), expected, atol=1e-5, rtol=1e-5)
        assert passes == ({} if count == 15 else {0: 1, 1: 1})


def test_invisible_trunk_file_is_an_error(world, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    settings = BatchSettings(4, 2, 64, tokens_per_microbatch=64)
    with pytest.raises(ValueError, match=r"not seen by rank 0: put --runs on a shared disk, or --trunk-cache 0"):
        Trunk(tiny_model("bloom"), 2).keep([(1, 2)], tmp_path / "t.bin", settings, world, Console(enabled=False))


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_training_from_kept_trunk_is_the_same(world, tmp_path, stage):
    """Two epochs from memory, from half of it, and with all recomputed: the same losses and weights."""
    sizes = {"all": 1.0, "part": 5e-6, "none": 0.0}
    ran = {}
    outcomes = {}
    for name, size in sizes.items():
        model = tiny_model("llama", layers=4)
        passes = layer_passes(model)
        top = 2 if stage == "reward" else "2"
        outcomes[name] = train(make_trainer(
            stage, world, tmp_path / name, model=model, top_layers=top, trunk_cache=size, max_steps=None, epochs=2
        ))  # fmt: skip
        ran[name] = passes[0]
    for name in ("part", "none"):
        assert_same_rows(outcomes[name]["rows"], outcomes["all"]["rows"], name)
        assert_same_weights(outcomes[name]["weights"], outcomes["all"]["weights"], 1e-6)
    assert ran["all"] < ran["none"] and ran["all"] < ran["part"]


@pytest.mark.parametrize("family", FAMILIES)
def test_reward_top_on_policy_trunk_scores_like_whole_model(world, tmp_path, family):
    """The score of its top on what generation kept is that of the saved model over the same tokens."""
    folder = shared_reward(world, tmp_path / "reward", family)
    trainer = make_trainer(
        "ppo", world, tmp_path / "ppo", family=family, layers=4, reward=folder, critic="separate", score_clip=100.0
    )
    assert trainer.scorer.shares_trunk
    check_critic_starts_as_the_score(trainer, folder)


def test_reward_model_with_other_lower_layers_keeps_its_trunk(world, tmp_path):
    """One bit in one frozen weight decides; trained deeper than the policy's top it cannot share either."""
    folder = shared_reward(world, tmp_path / "reward")
    model = tiny_model("bloom", layers=4)
    assert same_trunk(load_model(folder), model, 2)
    assert not same_trunk(load_model(folder), model, 3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers[1].mlp_down.bias[0] += 1e-7
    assert not same_trunk(load_model(folder), other, 2)
    assert same_trunk(load_model(folder), other, 1)
    trainer = make_trainer(
        "ppo", world, tmp_path / "ppo", model=other, reward=folder, critic="separate", score_clip=100.0
    )
    assert not trainer.scorer.shares_trunk
    check_critic_starts_as_the_score(trainer, folder)


def check_critic_starts_as_the_score(trainer, folder):
    """Scores are those of the saved model, whole; the value at a last token is that score plus the offset."""
    x = trainer.collect(0, Metrics())
    whole = RewardModule(load_model(folder), load_score_weight(folder))
    with torch.no_grad():
        expected_S = (whole(x.batch, None) - trainer.scorer.mean) / trainer.scorer.std
        _, _, value_S = trainer.policy(x.batch, x.trunk_TD, x.batch.last_S, 1.0, x.critic_trunk_TD)
    torch.testing.assert_close(x.score_S, expected_S, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(value_S - trainer.policy.value_offset, expected_S, atol=1e-4, rtol=1e-4)
    assert x.value_T[x.action_T].mean().item() == pytest.approx(expected_S.mean().item(), abs=1e-4)


@pytest.mark.parametrize(("family", "change", "is_same"), [
    ("llama", {"rms_norm_eps": 1e-5}, False),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, False),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, False),
    ("bloom", {"layer_norm_epsilon": 1e-6}, False),
    ("bloom", {"n_head": 8}, False),
    ("llama", {"pad_token_id": 3, "eos_token_id": [2, 5], "num_labels": 1, "use_cache": False}, True),
    ("bloom", {"architectures": ["BloomForSequenceClassification"], "hidden_dropout": 0.1}, True),
])  # fmt: skip
def test_same_trunk_compares_configs(family, change, is_same):
    model = tiny_model(family)
    other = build_model(CONFIGS[family](**{LAYERS[family]: 3}, **change), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert same_trunk(model, other, 2) == is_same
    prints = [fingerprint(m, [(1, 2)]) for m in (model, other)]
    assert (prints[0] == prints[1]) == is_same


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_trunk_runs_only_in_generation(world, tmp_path, critic, monkeypatch):
    """Layer passes by hooks. The trunk: in every step of generation and nowhere else. The top, in units of one pass
    over all rollouts: once for the old policy, once for the reference, once for the reward, ppo_epochs times for
    training; the critic's top once and ppo_epochs times."""
    # Neither a tape nor a fast path calls modules, so no hook runs: they compute the same (test_decode_tape.py,
    # test_fused.py).
    monkeypatch.setattr(DecodeTape, "of", classmethod(lambda *_: None))
    monkeypatch.setattr(fused, "FAST_PATHS", {})
    folder = shared_reward(world, tmp_path / "reward")
    model = tiny_model("bloom", layers=4)
    trainer = make_trainer(
        "ppo", world, tmp_path / "ppo", model=model, reward=folder, critic=critic, ppo_epochs=3, minibatch_size=5,
        max_steps=1, tokens_per_microbatch=10_000, slots=64,
    )  # fmt: skip
    tokens: Counter = Counter()
    where = {"model": model, "reference": trainer.reference, "reward": trainer.scorer.module}
    where |= {"critic": trainer.zero.module.critic} if critic == "separate" else {}
    for name, module in where.items():
        for block in [m for m in module.modules() if hasattr(m, "index")]:
            block.register_forward_pre_hook(
                lambda block, args, name=name: tokens.update({(name, block.index): args[0].shape[0]})
            )
    generating: Counter = Counter()
    generate = trainer._generate

    def counted(*args):
        before = Counter(tokens)
        responses = generate(*args)
        generating.update(tokens - before)
        return responses

    trainer._generate = counted
    experience = trainer.collect(0, Metrics())
    for ids in [ids for epoch in range(3) for ids in trainer.plan.minibatches(0, epoch)]:
        trainer.update(experience, ids, 1e-3, Metrics())
    total = experience.batch.num_tokens
    outside = Counter({key: n / total for key, n in (tokens - generating).items()})
    expected = {}
    for layer in (2, 3):
        expected |= {("model", layer): 1 + 3, ("reference", layer): 1, ("reward", layer): 1}
        expected |= {("critic", layer): 1 + 3} if critic == "separate" else {}
    assert outside == expected
    assert generating["model", 0] == generating["model", 3] == total


@pytest.mark.parametrize("family", FAMILIES)
def test_training_from_captured_trunk_equals_recomputed(world, tmp_path, family):
    """Ten optimizer steps with the trunk kept by generation, and with it run anew over the finished rollouts."""
    outcomes = []
    for recompute in (False, True):
        trainer = make_trainer(
            "ppo", world, tmp_path / str(recompute), family=family, layers=4, epochs=5, max_steps=5, ppo_epochs=1
        )
        if recompute:
            generate, trunk = trainer._generate, Trunk(trainer.model, 2)

            def recomputed(iteration, ids, generate=generate, trunk=trunk, trainer=trainer):
                responses = generate(iteration, ids)
                asked = [trainer.prompts[trainer.steps[iteration][i]].tokens for i in ids]
                batch = PackedBatch.from_sequences([(*p, *r.tokens) for p, r in zip(asked, responses)])
                rows = trunk(batch).split(batch.lengths)
                for response, kept_ND in zip(responses, rows):
                    torch.testing.assert_close(response.trunk_ND, kept_ND, atol=1e-5, rtol=1e-5)
                return [dataclasses.replace(r, trunk_ND=kept_ND) for r, kept_ND in zip(responses, rows)]

            trainer._generate = recomputed
        outcomes.append(train(trainer))
    assert_same_rows(outcomes[0]["rows"], outcomes[1]["rows"], "recomputed")
    assert_same_weights(outcomes[0]["weights"], outcomes[1]["weights"], 1e-6)


def test_separate_critic_learns_and_reward_model_stays(world, tmp_path):
    folder = shared_reward(world, tmp_path / "reward")
    trainer = make_trainer(
        "ppo", world, tmp_path / "ppo", layers=4, reward=folder, critic="separate", epochs=20, max_steps=12, lr=1e-2,
        eps=1e-8, schedule="constant", warmup_steps=0,
    )  # fmt: skip
    before = copy.deepcopy(trainer.scorer.module.state_dict())
    start = {k: v.clone() for k, v in trainer.zero.state_dict().items()}
    outcome = train(trainer)
    assert all(torch.equal(before[k], v) for k, v in trainer.scorer.module.state_dict().items())
    critic = [k for k in start if k.startswith("critic.")]
    assert critic and not any(torch.equal(start[k], outcome["weights"][k]) for k in critic)
    losses = [row["loss/value_avg"] for row in outcome["rows"]]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_two_ranks_equal_one(tmp_path):
    """Reward on a shared trunk with a separate critic, under ZeRO-2 and with everything sharded under ZeRO-3."""
    with one_rank() as world:
        shared = shared_reward(world, tmp_path / "reward", layers=3)
    case = {"reward": shared, "critic": "separate"}
    check_two_ranks("ppo", tmp_path, {zero: {**case, "zero": zero} for zero in ("zero2", "zero3")})


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("trunk", ["shared", "own"])
def test_two_ranks_equal_one_under_every_stage(tmp_path, critic, trunk):
    with one_rank() as world:
        changes = {"trunk": "shared", "top_layers": 2} if trunk == "shared" else {"top_layers": 3}
        train(make_trainer("reward", world, tmp_path / "reward", **changes))
    case = {"reward": str(tmp_path / "reward" / "model"), "critic": critic, "reward_offload": trunk == "own"}
    check_two_ranks("ppo", tmp_path, {zero: {**case, "zero": zero} for zero in EVERY_STAGE})


def shard_and_gather() -> tuple[int, bool]:
    """(elements held while released, whether gathering brings back the same bits), on each of the ranks."""
    world, model = start_world(), tiny_model("llama")
    weights = [w for _, w in trunk_parameters(model, 2)]
    before = [w.detach().clone() for w in weights]
    sharded = ShardedWeights(weights, world)
    sharded.release()
    held = sum(w.numel() for w in weights) + sum(p.numel() for p in sharded.parts)
    sharded.gather()
    return held, all(torch.equal(a, b) for a, b in zip(before, weights))


def test_released_weights_are_sharded():
    total = sum(w.numel() for _, w in trunk_parameters(tiny_model("llama"), 2))
    for held, same in run_ranks(shard_and_gather, 2):
        assert same
        assert total / 2 <= held <= total / 2 + 20


def test_weights_in_host_memory_are_copied_to_the_device_and_never_back(monkeypatch):
    """A copy stands for the device's. A tied weight is copied once; the host's is never written, nor moved."""
    copies = []
    monkeypatch.setattr("engine.training.sharded._on_device", lambda x, device: copies.append(x.clone()) or copies[-1])
    weights = [torch.nn.Parameter(torch.full((3,), float(i))) for i in range(2)]
    places = [w.data_ptr() for w in weights]
    host = HostWeights([*weights, weights[0]], torch.device("cpu"))
    for uses in (1, 2):
        with host.on_device():
            assert [w.data_ptr() for w in weights] == [c.data_ptr() for c in copies[-2:]]
            weights[1].data += 7  # a change on the device is lost
        assert len(copies) == 2 * uses
        assert [w.data_ptr() for w in weights] == places
        assert [w[0].item() for w in weights] == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_checksum_changes_with_every_bit(dtype):
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[1, 1] = 0.0
    frozen = FrozenWeights([("a", weight), ("b", weight.clone())])
    frozen.check()
    weight[1, 1] = -0.0
    with pytest.raises(AssertionError, match="1 frozen weights have changed in this run, the first: a"):
        frozen.check()


def test_checksum_of_large_and_transposed_tensors():
    weight = torch.arange(1 << 23, dtype=torch.float32)
    assert int(checksums([("w", weight)])["w"]) == int(weight.view(torch.int32).sum(dtype=torch.int64))
    assert checksums([("w", weight.view(2, -1).T)])["w"] == checksums([("w", weight)])["w"]


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_changed_trunk_is_an_error(tmp_path, stage):
    with one_rank() as world:
        trainer = make_trainer(stage, world, tmp_path / stage, top_layers="1" if stage != "reward" else 1)
        trainer.frozen.check()
        with torch.no_grad():
            trainer.model.layers[0].qkv.bias[0] += 1e-3
        with pytest.raises(AssertionError, match=r"the first: layers\.0\.qkv\.bias"):
            train(trainer)


@pytest.mark.parametrize("trunk_dtype", ["model", "int8"])
@pytest.mark.parametrize("text", [None, ["text"]])
def test_a_parked_trunk_changes_no_bit_and_is_on_the_device_only_while_it_is_read(world, tmp_path, trunk_dtype, text):
    ptx = {"texts": [["w5 w6 w7 w8 w9 w4"] * 20], "ptx_data": text, "ptx_coef": 0.5, "ptx_tokens": 30} if text else {}

    def trained(name, parks):
        trainer = make_trainer("ppo", world, tmp_path / name, trunk_dtype=trunk_dtype, park_trunk=parks, **ptx)
        own, held = trainer.zero.step, []

        def step(lr):
            held.append(sum(w.numel() for w in trainer.actor.trunk.weights))
            return own(lr)

        trainer.zero.step = step
        return train(trainer), held

    (parked, held), (usual, all_held) = trained("parked", True), trained("usual", False)
    assert len(held) == len(all_held) > 2 and not any(held) and all(all_held)
    assert parked["rows"] == usual["rows"]
    assert all(torch.equal(w, parked["weights"][name]) for name, w in usual["weights"].items())


def test_two_ranks_park_their_parts(tmp_path):
    check_two_ranks("ppo", tmp_path, {zero: {"park_trunk": True, "zero": zero} for zero in ("zero1", "zero3")})
