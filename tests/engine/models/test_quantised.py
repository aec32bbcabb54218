"""Quantised weights: codes by hand, the error bound, the product, loading layer by layer, and equal exported logits."""

import pytest
import torch
from torch.nn.functional import linear

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import load_model, save_model
from engine.models.quantised import (
    QuantisedEmbedding,
    QuantisedLinear,
    num_weights,
    quantise,
    quantise_trunk,
    stored_weights,
)
from engine.planning.memory_tracker import MemoryTracker
from engine.training.lora import LoraModule
from kernels.common.codes import Codes
from kernels.linear_logprob import linear_logits
from tests.engine.planning.test_memory import model_of
from tests.engine.training.trainers import FAMILIES, tiny_model

DTYPES = {"int8": 127, "int4": 7}


def logits(model):
    batch = PackedBatch.from_sequences([list(range(4, 20)), list(range(30, 35))])
    h_TD = model.run(model.embed(batch), batch, 0, model.num_layers)
    return linear_logits(model.norm(h_TD), model.head_weight)


def test_codes_by_hand():
    weight_NI = torch.zeros(1, 34)
    weight_NI[0, :4] = torch.tensor([7.0, -3.4, 0.6, 0.4])  # scale 1: codes 7, -3, 1, 0
    weight_NI[0, 32:] = torch.tensor([-14.0, 5.0])  # scale 2: codes -7, 2 (2.5 to even)
    codes, scale_NG = quantise(weight_NI, "int4")
    assert scale_NG.tolist() == [[1.0, 2.0]] and codes.shape == (1, 32)
    assert codes[0, :2].tolist() == [7 | 13 << 4, 1] and codes[0, 16].item() == 9 | 2 << 4
    value_NI = Codes(codes, scale_NG, 34).values()
    assert value_NI[0, :4].tolist() == [7.0, -3.0, 1.0, 0.0] and value_NI[0, 32:].tolist() == [-14.0, 4.0]

    codes, scale_NG = quantise(torch.tensor([[127.0, -63.4, 0.6]]), "int8")
    assert scale_NG.tolist() == [[1.0]] and codes[0, :4].tolist() == [127, -63, 1, 0]


@pytest.mark.parametrize("trunk_dtype", DTYPES)
@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 96, 101])
def test_error_is_at_most_half_a_scale_but_for_the_largest_code(trunk_dtype, inputs):
    weight_NI = torch.randn(9, inputs, generator=torch.Generator().manual_seed(0))
    weight_NI[3] = 0.0
    codes, scale_NG = quantise(weight_NI, trunk_dtype)
    value_NI = Codes(codes, scale_NG, inputs).values()
    scale_NI = scale_NG.float().repeat_interleave(32, dim=1)[:, :inputs]
    # A scale that was rounded down may cut a weight off at code 127: by a scale at most. Code 7 has room.
    is_cut_NI = ((value_NI / scale_NI).abs() == 127) if trunk_dtype == "int8" else torch.zeros_like(value_NI)
    bound_NI = torch.where(is_cut_NI.bool(), scale_NI, 0.5001 * scale_NI)
    assert ((value_NI - weight_NI).abs() <= bound_NI).all()
    again, scales = quantise(value_NI, trunk_dtype)
    assert torch.equal(again, codes) and torch.equal(scales, scale_NG)


@pytest.mark.parametrize("trunk_dtype", DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [5, 2100])
def test_forward_is_linear_of_the_values(trunk_dtype, dtype, rows):
    generator = torch.Generator().manual_seed(1)
    weight_NI, bias_N, x_TI = (torch.randn(*s, generator=generator).to(dtype) for s in ((rows, 75), (rows,), (3, 75)))
    layer = QuantisedLinear(weight_NI, torch.nn.Parameter(bias_N), trunk_dtype)
    assert layer.weight.dtype == dtype
    torch.testing.assert_close(layer(x_TI), linear(x_TI, layer.weight, bias_N))
    assert not torch.equal(layer.weight, weight_NI)


@pytest.mark.parametrize("trunk_dtype", DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_quantise_to_themselves_for_every_scale(trunk_dtype, dtype):
    """For all 128 bfloat16 fractions, just below, at and above the largest magnitude that gives a scale."""
    generator = torch.Generator().manual_seed(2)
    scale_N = (torch.arange(128, 256) / 128).repeat_interleave(5)
    weight_NI = (2 * torch.rand(len(scale_N), 32, generator=generator) - 1) * 0.9
    weight_NI[:, 7] = torch.tensor([0.997, 0.999, 1.0, 1.001, 1.003]).repeat(128)
    weight_NI = (weight_NI * scale_N[:, None] * DTYPES[trunk_dtype]).to(dtype)
    first = quantise(weight_NI, trunk_dtype)
    value_NI = Codes(*first, 32, dtype).values()
    again = quantise(value_NI, trunk_dtype)
    assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])
    assert ((value_NI - weight_NI).abs() <= first[1].float() * 1.01).all()


@pytest.mark.parametrize("trunk_dtype", DTYPES)
def test_the_backward_is_that_of_linear_and_keeps_no_values(trunk_dtype):
    generator = torch.Generator().manual_seed(1)
    layer = QuantisedLinear(torch.randn(2100, 75, generator=generator), None, trunk_dtype)
    x_TI, grad_TN = (torch.randn(3, n, generator=generator) for n in (75, 2100))
    x_TI.requires_grad_(True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y_TN = layer(x_TI)
    (actual,) = torch.autograd.grad(y_TN, x_TI, grad_TN)
    (expected,) = torch.autograd.grad(linear(x_TI, layer.weight), x_TI, grad_TN)
    torch.testing.assert_close(actual, expected)
    assert sum(kept) < layer.codes.numel() / 2


@pytest.mark.parametrize("bits", DTYPES)
def test_an_embedding_reads_the_rows_of_its_tokens_alone(bits):
    weight_VD = torch.randn(5000, 40, generator=torch.Generator().manual_seed(1))
    layer, tokens_T = QuantisedEmbedding(weight_VD, bits), torch.tensor([4999, 0, 7, 7])
    assert torch.equal(layer(tokens_T), layer.weight[tokens_T])
    with MemoryTracker() as tracker:
        layer(tokens_T)
    assert tracker.peak < layer.codes.nbytes / 4


def test_a_weight_that_is_not_finite_is_an_error():
    with pytest.raises(UserError, match="not finite"):
        quantise(torch.tensor([[1.0, float("nan")]]), "int8")


@pytest.mark.parametrize("trunk_dtype", DTYPES)
@pytest.mark.parametrize("embedding_dtype", ["model", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_quantises_the_trunk_and_export_has_equal_logits(tmp_path, family, trunk_dtype, embedding_dtype, dtype):
    whole = tiny_model(family)
    save_model(whole, tmp_path / "whole")
    quantised = load_model(tmp_path / "whole", dtype, "cpu", trunk_dtype, 1, embedding_dtype)
    expected = load_model(tmp_path / "whole", dtype)
    quantise_trunk(expected, 1, trunk_dtype, embedding_dtype)
    for (name, a), (_, b) in zip(stored_weights(quantised), stored_weights(expected), strict=True):
        assert torch.equal(a, b), name
    layers = [any(isinstance(m, QuantisedLinear) for m in block.modules()) for block in quantised.layers]
    assert layers == [True, False, False]
    assert num_weights(quantised) == num_weights(whole)

    save_model(quantised, tmp_path / "exported")
    exported = load_model(tmp_path / "exported", dtype)
    with torch.no_grad():
        assert torch.equal(logits(exported), logits(quantised))
        assert not torch.equal(logits(load_model(tmp_path / "whole", dtype)), logits(quantised))


@pytest.mark.parametrize("trunk_dtype", DTYPES)
def test_loading_and_exporting_hold_few_tensors_in_full_precision(tmp_path, trunk_dtype):
    """Measured beside what stays: the work on one tensor, and a shard, of a trunk of 48 tensors."""
    whole = model_of("bloom", 128, 12)
    save_model(whole, tmp_path / "whole")
    largest = max(w.nbytes for w in whole.parameters())
    trunk = sum(m.weight.nbytes for m in whole.layers.modules() if isinstance(m, torch.nn.Linear))
    assert trunk > 30 * largest
    del whole

    class Allocated(MemoryTracker):
        """Without the meta tensors of the empty model, and the mapped file: one storage larger than any tensor."""

        def know(self, tensors):
            super().know(x for x in tensors if not x.is_meta and x.untyped_storage().nbytes() <= 2 * largest)

    with Allocated() as tracker:
        model = load_model(tmp_path / "whole", torch.float32, "cpu", trunk_dtype, 12)
        loaded = tracker.live
        assert loaded < trunk / 2
        assert tracker.peak - loaded < 6 * largest
        tracker.peak = loaded
        save_model(model, tmp_path / "exported", max_shard_bytes=4 * largest)
        assert tracker.peak - loaded < 4 * largest + 4 * largest
        assert tracker.live == loaded
    assert len(list((tmp_path / "exported").glob("*.safetensors"))) > 6


@pytest.mark.parametrize("trunk_dtype", DTYPES)
def test_factors_are_merged_a_shard_at_a_time(tmp_path, trunk_dtype):
    model = model_of("bloom", 128, 12)
    largest = max(w.nbytes for w in model.parameters())
    quantise_trunk(model, 12, trunk_dtype)
    module = LoraModule(model, None, 4, 8.0, 0)
    merged = module.merged(model, {f"factors.{n}": w.detach() for n, w in module.factors.named_parameters()})
    with MemoryTracker() as tracker:
        save_model(model, tmp_path / "m", max_shard_bytes=4 * largest, instead=merged)
    assert len(merged) == 48 and tracker.peak < 4 * largest + 5 * largest
    exported = load_model(tmp_path / "m")
    assert torch.equal(exported.layers[3].qkv.weight, model.layers[3].qkv.weight)  # the factors begin at zero
