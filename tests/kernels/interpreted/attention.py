"""Attention in Triton against float64: uneven lengths around the tiles, grouped heads, odd head sizes, ALiBi."""

import pytest
import torch

from kernels.attention import attention_reference
from kernels.attention.fused import attention_triton

SLOPES = torch.tensor([0.5, 0.25, 0.0884, 0.00390625])


def case(lengths, groups, head_size, dtype):
    g = torch.Generator().manual_seed(sum(lengths))
    q = torch.randn(sum(lengths), 4, head_size, generator=g)
    k, v = (torch.randn(sum(lengths), groups, head_size, generator=g) for _ in range(2))
    return [x.to(dtype).requires_grad_() for x in (q, k, v)], torch.tensor([0, *lengths]).cumsum(0).int()


def errors(out, inputs, lengths, slopes, weight, window=None):
    """The largest error of the output and of each gradient, against float64."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    truth = attention_reference(*wide, lengths, slopes, None, window)
    found = [out, *torch.autograd.grad((out * weight).sum(), inputs)]
    exact = [truth, *torch.autograd.grad((truth * weight.double()).sum(), wide)]
    return [(a.double() - b).abs().max().item() for a, b in zip(found, exact)]


# Tiles are 16 queries by 32 keys here: lengths just below, at and above them, and of one.
@pytest.mark.parametrize(
    ("lengths", "groups", "head_size", "alibi", "window"),
    [
        ([33, 1, 16, 7], 2, 5, True, None),
        ([48], 1, 16, False, None),
        ([1, 1], 4, 8, True, None),
        ([31, 32], 4, 24, False, None),
        ([90, 3], 2, 8, False, 20),
        ([70], 4, 5, True, 1),
    ],
)
def test_float32_is_as_exact_as_plain_pytorch(lengths, groups, head_size, alibi, window):
    inputs, cu = case(lengths, groups, head_size, torch.float32)
    slopes = SLOPES if alibi else None
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    case_of = (inputs, lengths, slopes, weight, window)
    ours = errors(attention_triton(*inputs, cu, lengths, slopes, head_size**-0.5, window), *case_of)
    plain = errors(attention_reference(*inputs, lengths, slopes, None, window), *case_of)
    # 2e-6: where plain PyTorch happens to be exact, as with a sequence of one token.
    assert all(a < max(2 * b, 2e-6) for a, b in zip(ours, plain)), (ours, plain)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.1), (torch.float16, 0.0125)])
def test_half_precision(dtype, most):
    """The interpreter cuts where a GPU rounds, so that twice a GPU's error is allowed."""
    lengths = [37, 5]
    inputs, cu = case(lengths, 2, 16, dtype)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = attention_triton(*inputs, cu, lengths, SLOPES, 0.25, None)
    assert out.dtype == dtype
    assert max(errors(out, inputs, lengths, SLOPES, weight)) < most


def test_strided_inputs_and_gradients():
    """Queries, keys and values as views of one projection, and a gradient that is an expanded scalar."""
    lengths = [20, 3]
    qkv = torch.randn(23, 2, 3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wide = qkv.detach().double().requires_grad_()
    attention_triton(*qkv.unbind(2), torch.tensor([0, 20, 23]).int(), lengths, None, 0.3, None).sum().backward()
    attention_reference(*wide.unbind(2), lengths, None, 0.3).sum().backward()
    torch.testing.assert_close(qkv.grad.double(), wide.grad, atol=2e-6, rtol=1e-5)


def test_empty_batch():
    q = torch.zeros(0, 4, 8, requires_grad=True)
    out = attention_triton(q, q, q, torch.zeros(1).int(), [], SLOPES, 1.0, None)
    out.sum().backward()
    assert out.shape == q.grad.shape == (0, 4, 8)
