"""Parity of linear_logprob with its float64 reference, forward and each gradient."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.linear_logprob import blocked, linear_logprob, linear_logprob_reference


def case(rows, vocab, seed, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, 12, generator=g) * scale
    W = torch.randn(vocab, 12, generator=g)
    return h, W, torch.randint(vocab, (rows,), generator=g), torch.randn(3, rows, generator=g)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 9),
    st.sampled_from([1, 2, 31, 97, 256]),
    st.sampled_from([0.1, 1.0, 10.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_equals_float64(rows, vocab, temperature, with_bias, seed):
    h, W, target, weights = case(rows, vocab, seed)
    bias = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) if with_bias else None
    narrow = [h.clone().requires_grad_(), W.clone().requires_grad_()]
    wide = [h.double().requires_grad_(), W.double().requires_grad_()]
    before, blocked.BLOCK_ELEMENTS = blocked.BLOCK_ELEMENTS, 3 * vocab  # several blocks, the last one short
    try:
        outs = linear_logprob(*narrow, target, temperature, bias)
        sum((o * w).sum() for o, w in zip(outs, weights)).backward()
    finally:
        blocked.BLOCK_ELEMENTS = before
    truths = linear_logprob_reference(*wide, target, temperature, None if bias is None else bias.double())
    sum((o * w.double()).sum() for o, w in zip(truths, weights)).backward()
    for out, truth in zip(outs, truths):
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), truth, atol=2e-4 / min(1, temperature), rtol=1e-5)
    for a, b in zip(narrow, wide):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=2e-3, rtol=1e-3)


def test_very_negative_logits_stay_finite():
    h, W, target, _ = case(4, 50, 0, scale=1e4)
    for out in linear_logprob(h.requires_grad_(), W, target):
        assert torch.isfinite(out).all()
        out.sum().backward(retain_graph=True)
        assert torch.isfinite(h.grad).all()


def test_a_frozen_head_gets_no_gradient():
    h, W, target, _ = case(4, 50, 0)
    linear_logprob(h.requires_grad_(), W, target)[0].sum().backward()
    assert W.grad is None
