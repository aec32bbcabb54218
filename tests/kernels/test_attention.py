"""Parity of packed attention with its float64 reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.attention import attention, attention_reference

SLOPES = torch.tensor([0.5, 0.25, 0.0884, 0.00390625])


def case(lengths, groups, head_size, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    q = torch.randn(total, 4, head_size, generator=g, dtype=torch.float64)
    k, v = (torch.randn(total, groups, head_size, generator=g, dtype=torch.float64) for _ in range(2))
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    return [x.to(dtype).requires_grad_() for x in (q, k, v)], cu


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([8, 16, 24]),
    st.booleans(),
)
def test_equals_float64_with_gradients(lengths, groups, head_size, alibi):
    (q, k, v), cu = case(lengths, groups, head_size)
    slopes = SLOPES if alibi else None
    out = attention(q, k, v, cu, lengths, slopes)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    truth = attention_reference(*wide, lengths, slopes)
    weight = torch.randn(truth.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (out * weight.float()).sum().backward()
    (truth * weight).sum().backward()
    assert out.shape == q.shape
    torch.testing.assert_close(out.double(), truth, atol=2e-5, rtol=1e-4)
    for narrow, exact in zip((q, k, v), wide):
        torch.testing.assert_close(narrow.grad.double(), exact.grad, atol=1e-4, rtol=1e-3)


def test_sequences_do_not_see_each_other():
    lengths = [5, 1, 9]
    (q, k, v), cu = case(lengths, 4, 8)
    whole = attention(q, k, v, cu, lengths, SLOPES)
    for s, (a, n) in enumerate(zip(cu.tolist(), lengths)):
        alone = attention(q[a : a + n], k[a : a + n], v[a : a + n], torch.tensor([0, n]).int(), [n], SLOPES)
        assert torch.equal(whole[a : a + n], alone), s


@pytest.mark.parametrize("length", [257, 1024])
def test_alibi_in_bfloat16_keeps_positions_exact(length):
    """A bias cast to bfloat16 is wrong by whole units at position 1,024; the folded one by rounding of q and k only."""
    (q, k, v), cu = case([length], 4, 16, dtype=torch.bfloat16)
    out = attention(q, k, v, cu, [length], SLOPES)
    truth = attention_reference(q.double(), k.double(), v.double(), [length], SLOPES)
    assert (out.double() - truth).abs().max() < 0.03
