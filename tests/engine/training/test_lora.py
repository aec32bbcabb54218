"""Low-rank adaptation: a dense computation of the same, merged weights, ranks, resuming, and errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import load_model
from engine.planning.memory import memory, peaks
from engine.planning.memory_tracker import MemoryTracker
from engine.settings import SFTSettings
from engine.text.encoding import Example
from engine.training.lora import LoraModule, linear_layers, num_factors
from engine.training.modules import LanguageModule
from tests.engine.planning.test_memory import model_of, on_meta, workload
from tests.engine.training.stopping import stopped
from tests.engine.training.trainers import (
    FAMILIES,
    check_two_ranks,
    make_trainer,
    one_rank,
    sft_examples,
    tiny_model,
    train,
)

LORA = {"lora_rank": 4, "max_steps": 4}


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def batch_of(*lengths):
    return PackedBatch.from_sequences([[7 + i % 30 for i in range(n)] for n in lengths])


@pytest.mark.parametrize("split", [None, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_output_and_gradients_are_those_of_the_sum_of_both_weights(family, split):
    """Against a model whose weights are W + alpha / rank * up @ down: dense gradients times the other factor."""
    adapted, dense = tiny_model(family), tiny_model(family)
    module = LoraModule(adapted, split, 4, 6.0, seed=1)
    with torch.no_grad():
        for factors in module.factors.values():
            factors.up.normal_(generator=torch.Generator().manual_seed(2))
        for name, read in module.merged(adapted, module.state_dict()).items():
            dense.get_parameter(name).copy_(read())
    whole = LanguageModule(dense, None if split is None else split)
    batch, columns_A = batch_of(9, 5), torch.tensor([1, 4, 10])
    trunks = [None if split is None else m.run(m.embed(batch), batch, 0, split).detach() for m in (adapted, dense)]
    outputs = [m(batch, trunk_TD, columns_A) for m, trunk_TD in zip((module, whole), trunks)]
    assert torch.allclose(*outputs, atol=1e-5)
    for output in outputs:
        output.sum().backward()
    layers = dict(linear_layers(dense, split))
    assert len(layers) == len(module.factors) > 0
    for name, layer in layers.items():
        factors = module.factors[name.replace(".", "_")]
        gradient = layer.weight.grad
        assert torch.allclose(factors.up.grad, 1.5 * gradient @ factors.down.T, atol=1e-4, rtol=1e-4), name
        assert torch.allclose(factors.down.grad, 1.5 * factors.up.T @ gradient, atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_training_starts_from_the_model_and_changes_the_adapted_weights_alone(world, tmp_path, family):
    first = train(make_trainer("sft", world, tmp_path / "usual", family, max_steps=1))["rows"][0]["loss/sft"]
    trainer = make_trainer("sft", world, tmp_path / "lora", family, top_layers="2", heldout=sft_examples(), **LORA)
    trained = train(trainer)
    assert trained["rows"][0]["loss/sft"] == pytest.approx(first, rel=1e-6)
    assert trained["result"]["heldout_loss"] < trained["result"]["heldout_loss_before"]
    saved, base = load_model(trainer.run.model_dir), tiny_model(family)
    adapted = {f"{name}.weight" for name, _ in linear_layers(base, 1)}
    for name, weight in base.named_parameters():
        assert torch.equal(saved.get_parameter(name), weight) == (name not in adapted), name


def test_the_saved_model_computes_what_was_trained(world, tmp_path):
    trainer = make_trainer("sft", world, tmp_path / "run", "llama", **LORA)
    train(trainer)
    saved = LanguageModule(load_model(trainer.run.model_dir))
    batch, columns_A = batch_of(12, 30), torch.tensor([1, 4, 30])
    with torch.no_grad():
        assert torch.allclose(trainer.zero(batch, None, columns_A), saved(batch, None, columns_A), atol=1e-5)


def test_only_the_factors_are_trained_and_kept(world, tmp_path):
    trainer = make_trainer("sft", world, tmp_path / "run", **LORA)
    count = sum(p.numel() for p in trainer.zero.module.parameters())
    assert count == num_factors(trainer.model, None, 4)
    shapes = [layer.weight.shape for m in [trainer.model] for layer in m.modules() if isinstance(layer, nn.Linear)]
    assert count == sum(4 * sum(shape) for shape in shapes if trainer.model.vocab_size not in shape)


def test_a_resumed_run_equals_one_never_stopped(world, tmp_path):
    whole = train(make_trainer("sft", world, tmp_path / "whole", **LORA))
    stopped("sft", world, tmp_path / "cut", 2, **LORA)
    resumed = train(make_trainer("sft", world, tmp_path / "cut", resume=True, save_every=100, **LORA))
    assert resumed["rows"] == whole["rows"][2:]
    for name, weight in whole["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name


def test_two_ranks_equal_one(tmp_path):
    check_two_ranks("sft", tmp_path, {zero: {"zero": zero, **LORA} for zero in ("zero0", "zero3")})


def test_memory_of_a_step_is_as_planned(world, tmp_path):
    """Weights, factors, their gradients and moments, and activations; less than for training all weights."""
    model = model_of("llama", 160, 8)
    examples = [Example(str(i), tuple(range(10, 50)), 8) for i in range(8)]
    with MemoryTracker() as tracker:
        tracker.know(model.parameters())
        trainer = make_trainer(
            "sft", world, tmp_path / "run", model=model, data=examples, batch_size=8, tokens_per_microbatch=320,
            epochs=3, lora_rank=4,
        )  # fmt: skip
        trainer.step(0)
        tracker.peak = tracker.live
        trainer.step(1)
        measured = tracker.peak
    planned = workload("sft", top_layers=None, tokens_per_microbatch=320)
    lora, usual = (peaks(memory(on_meta(model), replace(planned, lora_rank=rank)))[1] for rank in (4, 0))
    assert lora == pytest.approx(measured, rel=0.1)
    assert lora < 0.7 * usual


def test_mistakes():
    with pytest.raises(UserError, match="--lora-rank is 65, layers.0.qkv has 32 inputs and 96 outputs"):
        LoraModule(tiny_model("bloom"), None, 65, 1.0, 0)
    with pytest.raises(UserError, match="--lora-alpha is given without --lora-rank"):
        SFTSettings(lora_alpha=8.0)
    with pytest.raises(UserError, match="--lora-rank is -1: give 0 or more"):
        SFTSettings(lora_rank=-1)
