"""linear_logprob in Triton against float64, forward and backward: parts, chunks and tiles that end unevenly."""

import pytest
import torch

from kernels.linear_logprob import (
    autograd,
    fused,
    linear_logprob,
    linear_logprob_pair,
    linear_logprob_pair_reference,
    linear_logprob_reference,
)


@pytest.fixture(autouse=True)
def triton_on_cpu(monkeypatch):
    """Walks by Triton, with several parts and several chunks even of a small vocabulary."""
    monkeypatch.setattr(autograd, "walk_for", lambda h_TD: fused)
    monkeypatch.setattr(fused, "_part_columns", lambda tokens, vocab, device: 64)
    monkeypatch.setattr(fused, "FORWARD_TOKENS", 20)
    monkeypatch.setattr(fused, "LEAST_COLUMNS", 40)
    monkeypatch.setattr(fused, "CHUNK_BYTES", 40 * 20 * 4)
    monkeypatch.setattr(fused, "SUM_ELEMENTS", 20 * 32)


def case(tokens, vocab, hidden, dtype, bias):
    g = torch.Generator().manual_seed(tokens)
    h, ref = (torch.randn(tokens, hidden, generator=g).to(dtype) for _ in range(2))
    W = torch.randn(vocab, hidden, generator=g).to(dtype)
    target = torch.randint(0, vocab, (tokens,), generator=g)
    return h, W, ref, target, torch.randn(vocab, generator=g) if bias else None


def results(function, h, W, target, temperature, bias, ref=None):
    """Every output, then the gradients of h and W through all of them with different weights."""
    h, W = h.detach().requires_grad_(), W.detach().requires_grad_()
    out = function(h, W, target, *([] if ref is None else [ref]), temperature, bias)
    g = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=g)).sum() for x in out)
    return [x.detach().double() for x in (*out, *torch.autograd.grad(total, (h, W)))]


def errors(ours, reference, h, W, target, temperature, bias, ref):
    wide = [None if x is None else x.double() for x in (bias, ref)]
    truth = results(reference, h.double(), W.double(), target, temperature, *wide)
    found = results(ours, h, W, target, temperature, bias, ref)
    return [(a - b).abs().max().item() for a, b in zip(found, truth)]


CASES = [(5, 97, 24, 1.0, False), (21, 131, 24, 0.5, True), (1, 1, 7, 1.0, False), (17, 140, 16, 10.0, True)]


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize(("tokens", "vocab", "hidden", "temperature", "bias"), CASES)
def test_float32_is_as_exact_as_plain_pytorch(tokens, vocab, hidden, temperature, bias, pair):
    h, W, ref, target, bias_V = case(tokens, vocab, hidden, torch.float32, bias)
    reference = linear_logprob_pair_reference if pair else linear_logprob_reference
    inputs = (h, W, target, temperature, bias_V, ref if pair else None)
    ours = errors(linear_logprob_pair if pair else linear_logprob, reference, *inputs)
    plain = errors(reference, reference, *inputs)
    assert all(a <= max(3 * b, 2e-6) for a, b in zip(ours, plain)), (ours, plain)


@pytest.mark.parametrize("pair", [False, True])
def test_bfloat16(pair):
    h, W, ref, target, _ = case(27, 150, 32, torch.bfloat16, False)
    inputs = (h, W, target, 1.0, None, ref if pair else None)
    reference = linear_logprob_pair_reference if pair else linear_logprob_reference
    *outputs, dh, dW = errors(linear_logprob_pair if pair else linear_logprob, reference, *inputs)
    assert max(outputs) < 1e-4  # the logits are float32 sums
    assert max(dh, dW) < 0.5  # dz is bfloat16, and of the order of 10


def test_entries_with_no_chance_and_a_transposed_head():
    h, W, _, target, _ = case(9, 70, 16, torch.float32, False)
    bias = torch.zeros(70)
    bias[64:] = float("-inf")  # the whole second part
    bias[3] = -1e4
    target = target % 64
    found = results(linear_logprob, h, W.T.contiguous().T, target, 1.0, bias)
    truth = results(linear_logprob_reference, h.double(), W[:64].double(), target, 1.0, bias[:64].double())
    truth[4] = torch.cat([truth[4], torch.zeros(6, 16, dtype=torch.float64)])
    for a, b in zip(found, truth):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def test_a_nan_stays_one_and_in_its_row():
    h, W, _, target, _ = case(3, 70, 16, torch.float32, False)
    h[1, 0] = float("nan")
    for x in results(linear_logprob, h, W, target, 1.0, None)[:3]:
        assert x.isnan().tolist() == [False, True, False]


def test_empty_batch():
    h, W, _, target, _ = case(0, 70, 16, torch.float32, False)
    *outputs, dh, dW = results(linear_logprob, h, W, target, 1.0, None)
    assert [x.shape for x in (*outputs, dh)] == [(0,), (0,), (0,), (0, 16)]
    assert not dW.any()
