"""--recompute: the same bits as without, in every stage and on ranks of ZeRO-3, with less memory, as predicted."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from engine.batch import PackedBatch
from engine.models.decoder import Decoder
from engine.planning.activations import activation_bytes
from engine.planning.memory import memory, peaks
from engine.planning.memory_tracker import MemoryTracker
from engine.training.modules import LanguageModule
from tests.engine.planning.test_memory import model_of, on_meta, workload
from tests.engine.training.trainers import FAMILIES, check_two_ranks, make_trainer, one_rank, tiny_model, train

STAGES = {"pretrain": {}, "sft": {}, "reward": {}, "dpo": {}, "ppo": {}, "ppo of all layers": {"top_layers": "all"}}
STAGES["ppo with a critic of its own"] = {"critic": "separate"}


@pytest.fixture
def forwards(monkeypatch):
    """Count the calls of layers that compute a gradient or prepare one."""
    counted, original = [], Decoder.run_layers

    def run_layers(layers, *args, **options):
        counted.append(bool(options.get("recompute")) and torch.is_grad_enabled())
        return original(layers, *args, **options)

    monkeypatch.setattr(Decoder, "run_layers", staticmethod(run_layers))
    return counted


@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama"])
@pytest.mark.parametrize("name", STAGES)
def test_runs_are_equal_to_the_bit(tmp_path, forwards, family, name):
    stage, settings = name.split()[0], STAGES[name]
    if stage == "pretrain":
        (tmp_path / "text.txt").write_text(
            "\n\n".join(" ".join(f"w{5 + i % 40}" for i in range(n)) for n in (30, 9, 40))
        )
        settings = {"data": [str(tmp_path / "text.txt")], "batch_size": 2}
    with one_rank() as world:
        usual, recomputed = (
            train(make_trainer(stage, world, tmp_path / str(on), family, recompute=on, **settings))
            for on in (False, True)
        )
    assert any(forwards), "no layer was recomputed"
    assert recomputed["rows"] == usual["rows"]
    for weight, value in usual["weights"].items():
        assert torch.equal(recomputed["weights"][weight], value), weight


def test_two_ranks_of_zero_3(tmp_path):
    """Weights that are gathered for a layer's forward are gathered for its second forward, too."""
    check_two_ranks("sft", tmp_path, {"zero3": {"zero": "zero3", "recompute": True}})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_keeps_its_input_alone(family):
    """Memory of a step, measured and predicted: eight layers recomputed take less than half."""
    model, peak = model_of(family, 64, 8), {}
    batch = PackedBatch.from_sequences([[5] * 64] * 4)
    columns_A = torch.arange(0, 256, 2)
    for recompute in (False, True):
        module = LanguageModule(model, 0, recompute)
        trunk_TD = torch.randn(256, 64)

        def step(module=module, trunk_TD=trunk_TD) -> None:
            module(batch, trunk_TD.clone(), columns_A).sum().backward()

        step()
        with MemoryTracker() as tracker:
            step()
        peak[recompute] = tracker.peak - tracker.live
        # From layer 0 on, the planner also counts the gradient of the embedding's output.
        predicted = activation_bytes(on_meta(model), 0, 256, 128, recompute)
        assert predicted == pytest.approx(peak[recompute] + 256 * 64 * 4, rel=0.1)
    assert peak[True] < 0.5 * peak[False]


def test_the_plan_of_an_sft_step_is_smaller():
    model = on_meta(tiny_model("llama", layers=8))
    usual = workload("sft", top_layers=None)
    with_recompute = dataclasses.replace(usual, recompute=True)
    assert peaks(memory(model, with_recompute))[1] < peaks(memory(model, usual))[1]
