"""Parts of linear_logprob's C++: its exponential, its totals against eager's, its products without AMX."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import linear_logprob as linear_logprob_module
from kernels.linear_logprob import bfloat16, cpu, eager, linear_logits, linear_logprob
from tests.kernels.logprob_problems import errors, outputs_and_gradients, problem, shrink_blocks, truth_of

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no C++ compiler")


def test_products_without_amx_are_equal_to_rounding(monkeypatch):
    """Vectors replace AMX on processors without it."""
    shrink_blocks(monkeypatch)
    h, W, target, weights = problem(50, 333, 40, 0, torch.bfloat16)
    arguments = h, W, target, 0.7, weights
    tiles = outputs_and_gradients(linear_logprob, *arguments)
    monkeypatch.setattr(bfloat16, "has_amx", lambda: 0)
    for a, b in zip(outputs_and_gradients(linear_logprob, *arguments)[:3], tiles[:3]):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    found = errors(linear_logprob, truth_of(*arguments), *arguments)
    assert max(found[:3]) < 1e-5 and max(found[3:]) < 2**-8


@pytest.mark.parametrize("backend", ["tiles", "vectors", "plain PyTorch"])
@pytest.mark.parametrize(("tokens", "vocabulary", "width"), [(1, 1, 1), (3, 333, 40), (33, 1000, 64), (600, 49, 32)])
def test_logits_of_bfloat16_are_float32_sums(backend, tokens, vocabulary, width, monkeypatch):
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


@pytest.mark.parametrize("rows", [7, 33, 64])
def test_logits_of_a_large_head_are_written_by_blocks(rows, monkeypatch):
    """The last block is shorter; the memory given is filled and nothing beside it."""
    monkeypatch.setattr(linear_logprob_module, "CACHED_ELEMENTS", 0)
    monkeypatch.setattr(linear_logprob_module, "ROWS_AT_ONCE", rows)
    g = torch.Generator().manual_seed(0)
    h, W = torch.randn(5, 12, generator=g), torch.randn(33, 12, generator=g)
    memory = torch.full((6, 40), -7.0)
    linear_logits(h, W, memory[:5, :33])
    torch.testing.assert_close(memory[:5, :33], (h.double() @ W.double().T).float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(linear_logits(h, W), memory[:5, :33])
    assert (memory[5] == -7).all() and (memory[:, 33:] == -7).all()


def test_logits_on_cuda_are_float32():
    """Checks shapes and dtypes with fake tensors, so it needs no GPU."""
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


def test_totals_of_cpp_and_eager_are_close():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(70 * 37 + cpu.SPARE, generator=g)[: 70 * 37].view(70, 37)
    target = torch.randint(200, (37,), generator=g)
    results = []
    for passes in (cpu.Passes(cpu.library()), eager):
        totals, target_logit = eager.empty_totals(passes.PARTS, 37, z.device)
        passes.statistics(z, 0.5, totals, target, 100, target_logit)
        results.append((eager.merge(totals), target_logit))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
