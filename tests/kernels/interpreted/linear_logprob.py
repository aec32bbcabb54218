"""linear_logprob in Triton against float64, forward and backward, with partial last tiles, parts and chunks."""

import pytest
import torch

from kernels.linear_logprob import autograd, fused, linear_logprob, linear_logprob_reference


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
