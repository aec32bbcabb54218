"""Weights side by side: one product reads what training writes, and nothing else sees that they are together."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import linear

from engine.models import build_model, load_model, save_model
from engine.models.quantised import quantise_trunk
from engine.models.side_by_side import GROUPS, joined, lay_side_by_side
from kernels.common.codes import Codes
from tests.engine.models.tiny import CONFIGS, ONE_OF_EACH, randomise


def model_named(name):
    model = build_model(CONFIGS[name](), seed=0)
    randomise(model)
    return model


def groups_of(model):
    return [
        [getattr(block, n) for n in names] for block in model.layers for names in GROUPS if hasattr(block, names[0])
    ]


@pytest.mark.parametrize("name", ["llama, biases", "qwen2", "qwen3", "gemma3"])
def test_one_product_gives_the_outputs_of_all(name):
    model = model_named(name)
    before = {n: x.clone() for n, x in model.state_dict().items()}
    assert all(joined(layers) is None for layers in groups_of(model))
    lay_side_by_side(model)
    assert all(x.equal(before[n]) for n, x in model.state_dict().items())
    for layers in groups_of(model):
        x_TD = torch.randn(3, layers[0].in_features, generator=torch.Generator().manual_seed(0))
        weight_ND, bias_N = joined(layers)
        assert weight_ND.data_ptr() == layers[0].weight.data_ptr(), "no copy"
        outputs = torch.cat([layer(x_TD) for layer in layers], 1)
        torch.testing.assert_close(linear(x_TD, weight_ND, bias_N), outputs.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_every_family_may_be_laid(family):
    lay_side_by_side(build_model(ONE_OF_EACH[family](), seed=0))


def test_training_in_place_is_seen_at_once():
    model = model_named("llama, biases")
    lay_side_by_side(model)
    layers = groups_of(model)[0]
    weight_ND, bias_N = joined(layers)
    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters()], lr=0.1)
    sum(layer(torch.ones(1, layer.in_features)).sum() for layer in layers).backward()
    optimizer.step()
    assert weight_ND.equal(torch.cat([layer.weight for layer in layers]))
    assert bias_N.equal(torch.cat([layer.bias for layer in layers]))


def test_weights_with_other_memory_are_apart():
    """As after an optimizer with its own buffers, a cast, or a gather: no product may read the old memory."""
    model = model_named("llama, biases")
    lay_side_by_side(model)
    qkv, gate_up = groups_of(model)[:2]
    qkv[1].weight.data = qkv[1].weight.data.clone()
    assert joined(qkv) is None and joined(gate_up) is not None
    gate_up[1].bias.data = gate_up[1].bias.data.clone()
    assert joined(gate_up) is None
    assert all(joined(layers) is None for layers in groups_of(model.bfloat16()))


def test_order_and_gaps_matter():
    layers = [torch.nn.Linear(4, 3, bias=False) for _ in range(2)]
    whole = torch.randn(8, 4)

    def at(*starts):
        for layer, start in zip(layers, starts):
            layer.weight.data = whole[start : start + 3]
        return joined(layers)

    assert at(0, 3)[0].equal(whole[:6]) and at(2, 5)[0].equal(whole[2:8])
    assert at(3, 0) is None and at(0, 4) is None and at(0, 0) is None


def test_flat_buffers_of_an_optimizer_serve_too():
    """DeepSpeed's stages 1 and 2 put parameters one after the other: without biases between, they are side by side."""
    layers = groups_of(model_named("llama, grouped heads"))[0]
    flat = torch.cat([layer.weight.detach().flatten() for layer in layers])
    for layer, part in zip(layers, flat.split([layer.weight.numel() for layer in layers])):
        layer.weight.data = part.view_as(layer.weight)
    assert joined(layers)[0].flatten().equal(flat)


def test_copies_are_apart():
    """The reference and the critic are copies of the top, and may not share its memory."""
    model = model_named("qwen3")
    lay_side_by_side(model)
    block = copy.deepcopy(model.layers[-1])
    assert joined([block.q, block.k, block.v]) is None
    assert block.k.weight.untyped_storage().nbytes() == block.k.weight.nbytes


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_codes(bits):
    model = model_named("qwen2")
    quantise_trunk(model, 2, bits)
    separate = [[layer.weight for layer in layers] for layers in groups_of(model)[:4]]
    lay_side_by_side(model)
    for layers, weights in zip(groups_of(model), separate):
        codes, bias_N = joined(layers)
        assert isinstance(codes, Codes) and codes.values().equal(torch.cat(weights))
        assert bias_N is None or len(bias_N) == len(codes.codes)
    assert isinstance(joined(groups_of(model)[-1])[0], torch.Tensor), "the layers above are not quantised"


def test_saved_and_loaded_as_before(tmp_path):
    model = model_named("llama, biases")
    save_model(model, tmp_path / "apart")
    lay_side_by_side(model)
    save_model(model, tmp_path / "together")
    name = "model.safetensors"
    assert (tmp_path / "apart" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()
    state = load_model(tmp_path / "together").state_dict()
    assert all(x.equal(state[n]) for n, x in model.state_dict().items())
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 1.2 * sum(x.nbytes for x in state.values()) + 100_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_loaded_on_a_gpu_they_are_side_by_side(tmp_path):
    save_model(model_named("qwen2"), tmp_path / "model")
    assert all(joined(layers) for layers in groups_of(load_model(tmp_path / "model", device="cuda")))
    assert not any(joined(layers) for layers in groups_of(load_model(tmp_path / "model")))
