"""Quantised layers by their GPU route, in the interpreter: forward, backward, factors, and a rollout with graphs.

`on_gpu` makes the kernels take a CPU's tensors, and blocks run their own forward.
"""

import pytest
import torch

from engine.batch import PackedBatch
from engine.generation import decode_graphs, kv_cache
from engine.generation.decode_tape import DecodeTape
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.models import fused as fast_paths
from engine.models.quantised import QuantisedLinear, quantise_trunk
from engine.training.lora import LoraModule
from kernels import coded_linear
from kernels.common.codes import Codes
from tests.engine.generation.recorded_steps import model_of

TRUNK_DTYPES = ["int8", "int4"]


@pytest.fixture
def on_gpu(monkeypatch):
    """Call it to switch. Returns the rows of each product and gradient by these kernels, from then on."""
    calls = {"product": [], "gradient": []}

    def switch():
        monkeypatch.setattr(coded_linear, "fits", lambda x_TI: True)
        monkeypatch.setattr(fast_paths, "FAST_PATHS", {})
        monkeypatch.setattr(Codes, "values", None)  # nothing else dequantises
        for name, kind in (("coded_linear", "product"), ("coded_linear_gradient", "gradient")):
            kernel = getattr(coded_linear, name)
            monkeypatch.setattr(
                coded_linear,
                name,
                lambda x, *others, kernel=kernel, kind=kind: calls[kind].append(len(x)) or kernel(x, *others),
            )
        return calls

    return switch


@pytest.mark.parametrize("trunk_dtype", TRUNK_DTYPES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_layer_and_its_gradient(trunk_dtype, biased, on_gpu):
    generator = torch.Generator().manual_seed(0)
    bias = torch.nn.Parameter(torch.randn(50, generator=generator), requires_grad=False) if biased else None
    layer = QuantisedLinear(torch.randn(50, 75, generator=generator), bias, trunk_dtype)
    x_TI, grad_TN = (torch.randn(9, n, generator=generator) for n in (75, 50))
    x_TI.requires_grad_(True)

    def both():
        y_TN = layer(x_TI)
        return y_TN.detach(), *torch.autograd.grad(y_TN, x_TI, grad_TN)

    expected, calls = both(), on_gpu()
    for found, known in zip(both(), expected, strict=True):
        torch.testing.assert_close(found, known, atol=2e-5, rtol=1e-5)
    assert calls == {"product": [9], "gradient": [9]}


@pytest.mark.parametrize("trunk_dtype", TRUNK_DTYPES)
def test_gradients_of_factors_in_a_quantised_model(trunk_dtype, on_gpu):
    model = model_of("llama")
    quantise_trunk(model, 3, trunk_dtype)
    module = LoraModule(model, None, 2, 4.0, 0)
    for factors in module.factors.values():
        torch.nn.init.normal_(factors.up, std=0.1, generator=torch.Generator().manual_seed(1))
    batch = PackedBatch.from_sequences([[5, 6, 7, 8], [9, 10, 11]])
    columns_A = torch.tensor([0, 1, 2, 4, 5])

    def gradients():
        return torch.autograd.grad(module(batch, None, columns_A).sum(), list(module.factors.parameters()))

    expected, calls = gradients(), on_gpu()
    for found, known in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, known, atol=1e-4, rtol=1e-4)
    assert len(calls["product"]) == 21 and 18 <= len(calls["gradient"]) <= 21  # the first layer's input needs none


@pytest.fixture
def played(monkeypatch):
    """Decode steps as graphs on a CPU (see tests/engine/generation/test_decode_graphs.py)."""

    def capture_here():
        def capture(step):
            outputs = step()

            def replay():
                for kept, new in zip(outputs, step()):
                    kept.copy_(new)

            return replay, outputs

        return capture

    monkeypatch.setattr(DecodeTape, "of", classmethod(lambda *_: None))
    monkeypatch.setattr(decode_graphs, "capture_on_cuda", capture_here)
    monkeypatch.setattr(kv_cache, "spare_pages", lambda device: 1)


@pytest.mark.parametrize("trunk_dtype", TRUNK_DTYPES)
def test_a_rollout_with_graphs_runs_all_quantised_products_here(trunk_dtype, on_gpu, played):
    model = model_of("llama")
    quantise_trunk(model, 2, trunk_dtype)
    requests = [Request((5, 6, 7), 0, 0, 3), Request((5, 6, 7), 0, 1, 2), Request((8, 9), 1, 0, 3)]

    def rollout():
        return generate(model, requests, Sampling(0.0), 7, 96, capture_layer=2, num_slots=3)

    expected, calls = rollout(), on_gpu()
    for found, known in zip(rollout(), expected, strict=True):
        assert found.tokens == known.tokens
        torch.testing.assert_close(found.trunk_ND, known.trunk_ND, atol=2e-5, rtol=1e-5)
    # Captures and replays of 2 layers with 7 products: prompts of 5 tokens together, then 3 rows, then fewer.
    assert len(calls["product"]) % 14 == 0 and set(calls["product"]) == {5, 3, 2}
    assert not calls["gradient"]
