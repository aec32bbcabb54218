"""The C++ of linear_logprob, part by part: its exponential, its totals beside eager's, its products without AMX."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.linear_logprob import bfloat16, cpu, eager, linear_logits, linear_logprob_pair
from tests.kernels.logprob_problems import errors, outputs_and_gradients, problem, shrink_blocks, truth_of

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no C++ compiler")


def test_products_without_amx_are_the_same_to_rounding(monkeypatch):
    """The vectors that stand in where the processor multiplies no tiles."""
    shrink_blocks(monkeypatch)
    h, W, target, ref, bias, weights = problem(50, 333, 40, 0, torch.bfloat16, with_bias=True)
    arguments = h, W, target, ref, 0.7, bias, weights
    tiles = outputs_and_gradients(linear_logprob_pair, *arguments)
    monkeypatch.setattr(bfloat16, "has_amx", lambda: 0)
    for a, b in zip(outputs_and_gradients(linear_logprob_pair, *arguments)[:5], tiles[:5]):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    found = errors(linear_logprob_pair, truth_of(*arguments), *arguments)
    assert max(found[:5]) < 1e-5 and max(found[5:]) < 2**-8


@pytest.mark.parametrize("backend", ["tiles", "vectors", "plain PyTorch"])
@pytest.mark.parametrize(("tokens", "vocabulary", "width"), [(1, 1, 1), (3, 333, 40), (33, 1000, 64), (600, 49, 32)])
def test_logits_of_bfloat16_keep_the_float32_sums(backend, tokens, vocabulary, width, monkeypatch):
    if backend == "vectors":
        monkeypatch.setattr(bfloat16, "has_amx", lambda: 0)
    if backend == "plain PyTorch":
        monkeypatch.setattr(bfloat16, "available", lambda _: False)
    shrink_blocks(monkeypatch)
    g = torch.Generator().manual_seed(0)
    h, W = (torch.randn(n, width, generator=g).bfloat16() for n in (tokens, vocabulary))
    found = linear_logits(h, W)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (h.double() @ W.double().T).float(), atol=1e-5, rtol=1e-5)
    alone = linear_logits(h[-1:], W)
    assert torch.equal(alone[0], found[-1]) or backend == "plain PyTorch"


def test_logits_on_a_gpu_are_float32_too():
    """By shapes and dtypes alone: there need be no GPU."""
    with FakeTensorMode():
        h, W = (torch.empty(n, 8, dtype=torch.bfloat16, device="cuda") for n in (3, 7))
        found = linear_logits(h, W)
    assert (found.dtype, found.device.type, found.shape) == (torch.float32, "cuda", (3, 7))


def test_exponential_within_two_units_in_the_last_place():
    x = torch.cat([torch.linspace(-69, 1, 1 << 20), torch.tensor([-69.1, -3e38, float("-inf"), 0.0, float("nan")])])
    padded = torch.cat([x, torch.zeros(cpu.SPARE)])
    y = torch.empty(len(padded))
    cpu.library().logprob_exp(padded.data_ptr(), y.data_ptr(), len(x))
    truth = x[: 1 << 20].double().exp().numpy()
    ulp = np.spacing(truth.astype(np.float32)).astype(float)
    assert (np.abs(y[: 1 << 20].numpy() - truth) / ulp).max() < 2
    assert y[1 << 20 : len(x) - 1].tolist() == [0, 0, 0, 1] and y[len(x) - 1].isnan()


def test_both_backends_keep_the_same_totals():
    """What cpu.cpp keeps of a tile is what eager keeps, number by number."""
    g = torch.Generator().manual_seed(0)
    store = torch.randn(2, 70 * 37 + cpu.SPARE, generator=g)
    z, ref = (s[: 70 * 37].view(70, 37) for s in store)
    bias, target = torch.randn(70, generator=g), torch.randint(200, (37,), generator=g)
    results = []
    for passes in (cpu.Passes(cpu.library()), eager):
        kept, found = eager.nothing_kept(passes.PARTS, 37, z.device)
        passes.statistics(z, ref, bias, 0.5, kept, target, 100, found)
        results.append((eager.merged(kept), found))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
