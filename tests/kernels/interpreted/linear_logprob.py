"""linear_logprob in Triton against float64, forward and backward, with partial last tiles, parts and chunks."""

import pytest
import torch

from kernels.linear_logprob import autograd, columns, fused, linear_logprob, linear_logprob_reference
from tests.kernels.launches import Launches


@pytest.fixture(autouse=True)
def triton_on_cpu(monkeypatch):
    """Use the Triton walks, with several parts and several chunks even for a small vocabulary."""
    monkeypatch.setattr(autograd, "walk_for", lambda h_TD, W_VD: fused)
    monkeypatch.setattr(fused, "_part_columns", lambda tokens, vocab, device: 64)
    monkeypatch.setattr(fused, "FORWARD_TOKENS", 20)
    monkeypatch.setattr(fused, "LEAST_COLUMNS", 40)
    monkeypatch.setattr(fused, "CHUNK_BYTES", 40 * 20 * 4)
    monkeypatch.setattr(fused, "SUM_ELEMENTS", 20 * 32)


def case(tokens, vocab, hidden, dtype):
    g = torch.Generator().manual_seed(tokens)
    h, W = (torch.randn(n, hidden, generator=g).to(dtype) for n in (tokens, vocab))
    return h, W, torch.randint(0, vocab, (tokens,), generator=g)


def results(function, h, W, target, temperature=1.0):
    """Return the outputs, then dh and dW of a weighted sum of all outputs."""
    h, W = h.detach().requires_grad_(), W.detach().requires_grad_()
    out = function(h, W, target, temperature)
    g = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=g)).sum() for x in out)
    return [x.detach().double() for x in (*out, *torch.autograd.grad(total, (h, W)))]


def errors(function, h, W, target, temperature=1.0):
    truth = results(linear_logprob_reference, h.double(), W.double(), target, temperature)
    return [(a - b).abs().max().item() for a, b in zip(results(function, h, W, target, temperature), truth)]


CASES = [(5, 97, 24, 1.0), (21, 131, 24, 0.5), (1, 1, 7, 1.0), (17, 140, 16, 10.0)]


@pytest.mark.parametrize(("tokens", "vocab", "hidden", "temperature"), CASES)
def test_float32_is_as_exact_as_plain_pytorch(tokens, vocab, hidden, temperature):
    inputs = (*case(tokens, vocab, hidden, torch.float32), temperature)
    ours, plain = errors(linear_logprob, *inputs), errors(linear_logprob_reference, *inputs)
    assert all(a <= max(3 * b, 2e-6) for a, b in zip(ours, plain)), (ours, plain)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.5), (torch.float16, 0.0625)])
def test_half_precision(dtype, most):
    *outputs, dh, dW = errors(linear_logprob, *case(27, 150, 32, dtype))
    assert max(outputs) < 1e-4  # the logits are float32 sums
    assert max(dh, dW) < most  # dz is of that dtype, and of the order of 10


def test_transposed_head():
    h, W, target = case(9, 70, 16, torch.float32)
    found = results(linear_logprob, h, W.T.contiguous().T, target)
    for a, b in zip(found, results(linear_logprob_reference, h.double(), W.double(), target)):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def test_nan_stays_in_its_row():
    h, W, target = case(3, 70, 16, torch.float32)
    h[1, 0] = float("nan")
    for x in results(linear_logprob, h, W, target)[:3]:
        assert x.isnan().tolist() == [False, True, False]


def test_empty_batch():
    h, W, target = case(0, 70, 16, torch.float32)
    *outputs, dh, dW = results(linear_logprob, h, W, target)
    assert [x.shape for x in (*outputs, dh)] == [(0,), (0,), (0,), (0, 16)]
    assert not dW.any()


def test_logprob_of_confident_tokens_is_not_positive():
    h, W, target = case(9, 70, 16, torch.bfloat16)
    h = W[target]
    logprob = linear_logprob(h, W, target)[0]
    truth = linear_logprob_reference(h.double(), W.double(), target)[0]
    assert -1e-3 < truth.median() < truth.max() < 0 and logprob.max() <= 0
    torch.testing.assert_close(logprob.double(), truth, atol=1e-6, rtol=1e-3)


def test_factors_of_confident_and_of_impossible_tokens():
    """1 - p keeps its digits where p is near 1."""
    logprob_T = -torch.logspace(-12, 5, 300).repeat(2)
    others = torch.rand(4, 600, generator=torch.Generator().manual_seed(0))
    gradients = tuple(torch.randn(3, 600, generator=torch.Generator().manual_seed(1)))
    gradients[1][:300], gradients[2][:300] = 0, 0
    columns_5T = torch.cat([logprob_T[None], others])
    ours = fused.factors(columns.Results(*columns_5T), gradients, 0.7)
    truth = columns.factors(columns.Results(*columns_5T.double()), tuple(g.double() for g in gradients), 0.7)
    for a, b in zip(ours, truth):
        torch.testing.assert_close(a.double(), b, atol=0, rtol=1e-4)
    torch.testing.assert_close(ours[1][:300].double(), truth[1][:300], atol=0, rtol=1e-6)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradient_of_one_output_alone(which):
    h, W, target = case(5, 97, 24, torch.float32)
    found = [
        torch.autograd.grad(function(x, w, target, 0.7)[which].sum(), (x, w))
        for function, wide in ((linear_logprob, torch.float32), (linear_logprob_reference, torch.float64))
        for x, w in [[y.to(wide).requires_grad_() for y in (h, W)]]
    ]
    for ours, truth in zip(*found):
        torch.testing.assert_close(ours.double(), truth, atol=2e-5, rtol=1e-5)


def test_launches_for_4096_tokens_of_blooms_vocabulary(monkeypatch):
    """By tensors without memory. No copy from the host, and nothing per token but the three kernels for all of them."""
    monkeypatch.undo()
    monkeypatch.setattr(autograd, "walk_for", lambda h_TD, W_VD: fused)
    monkeypatch.setattr(fused, "_add_product", lambda sum_RD, a_RC, b_CD: sum_RD.add_(1))  # on CUDA one operation
    h, W = (torch.empty(n, 4096, dtype=torch.bfloat16, device="meta") for n in (4096, 250_880))
    target = torch.empty(4096, dtype=torch.int64, device="meta")
    with Launches(monkeypatch, compute=False) as seen:
        logprob, _, entropy = linear_logprob(h.requires_grad_(), W, target)
        forward = dict(seen.names)
        seen.names.clear()
        torch.autograd.backward([logprob, entropy], [torch.empty_like(x) for x in (logprob, entropy)])
    assert forward == {"_totals": 1, "_results": 1}
    walks, blocks = 3, 24 + 24 + 16  # of 1,536, 1,536 and 1,024 tokens over the vocabulary in blocks of 32 MiB
    products = {"_gradient": blocks, "add_": blocks}
    assert dict(seen.names) == {"_factors": 1, "zeros_like": walks, "copy_": walks, **products}
