"""Packed attention on CPU against float64: the C++ kernel, and plain PyTorch where that cannot be built."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention import attention, attention_after, attention_reference, has_attention_after
from kernels.attention.cpu import library
from kernels.attention.eager import attention_eager

SLOPES = torch.tensor([0.5, 0.25, 0.0884, 0.00390625])
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 4e-3}  # where plain PyTorch happens to be exact: a sequence of one token


def case(lengths, groups, head_size, seed=0, dtype=torch.float32, strided=False):
    g = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    q = torch.randn(total, 4, head_size, generator=g, dtype=torch.float64)
    k, v = (torch.randn(total, groups, head_size, generator=g, dtype=torch.float64) for _ in range(2))
    inputs = [x.to(dtype) for x in (q, k, v)]
    if strided:  # heads outermost, or the head size outermost
        inputs = [inputs[0].transpose(0, 1).contiguous().transpose(0, 1), *(x.mT.contiguous().mT for x in inputs[1:])]
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    return [x.requires_grad_() for x in inputs], cu


def plain(q, k, v, lengths, slopes, window=None):
    """What one writes in PyTorch in the inputs' dtype: a masked call a sequence."""
    outputs = []
    for n, *qkv in zip(lengths, *(x.split(lengths) for x in (q, k, v))):
        bias = torch.zeros(4, 1, n) if slopes is None else slopes[:, None, None] * torch.arange(n)
        unseen = torch.ones(n, n, dtype=torch.bool)
        unseen = unseen.triu(1) if window is None else unseen.triu(1) | unseen.tril(-window)
        mask = bias.masked_fill(unseen, float("-inf")).to(q.dtype)
        out = scaled_dot_product_attention(*(x.transpose(0, 1) for x in qkv), attn_mask=mask, enable_gqa=True)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


def errors(function, inputs, lengths, slopes, window=None):
    """Root mean square error against float64 of the output and of the gradients of q, k and v."""
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out, truth = function(*inputs), attention_reference(*wide, lengths, slopes, None, window)
    assert out.shape == inputs[0].shape and out.dtype == inputs[0].dtype
    found = [out, *torch.autograd.grad((out * weight).sum(), inputs)]
    exact = [truth, *torch.autograd.grad((truth * weight.double()).sum(), wide)]
    return [(a.double() - b).square().mean().sqrt().item() for a, b in zip(found, exact)]


def assert_no_worse_than_plain(function, inputs, lengths, slopes, window):
    ours = errors(function, inputs, lengths, slopes, window)
    theirs = errors(lambda q, k, v: plain(q, k, v, lengths, slopes, window), inputs, lengths, slopes, window)
    floor = FLOOR[inputs[0].dtype]
    assert all(a <= max(1.5 * b, floor) for a, b in zip(ours, theirs)), (ours, theirs)


@settings(deadline=None, max_examples=40)
@given(
    # Tiles are 64 by 64, strips 8, vectors 16.
    lengths=st.lists(st.sampled_from([1, 2, 7, 8, 9, 16, 17, 31, 63, 64, 65, 130, 260]), min_size=1, max_size=4),
    groups=st.sampled_from([1, 2, 4]),
    head_size=st.sampled_from([1, 5, 16, 24, 64]),
    alibi=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    strided=st.booleans(),
    window=st.sampled_from([None, 1, 5, 16, 64, 100, 1000]),
)
def test_no_worse_than_plain_pytorch(lengths, groups, head_size, alibi, dtype, strided, window):
    assert library() is not None, "the C++ kernel was not built here"
    inputs, cu = case(lengths, groups, head_size, len(lengths), dtype, strided)
    slopes = SLOPES if alibi else None
    assert_no_worse_than_plain(
        lambda q, k, v: attention(q, k, v, cu, lengths, slopes, None, window), inputs, lengths, slopes, window
    )


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_one_giant_sequence_beside_single_tokens(dtype):
    """Also the bias at position 4,095 of the steepest slope, which in bfloat16 would be wrong by whole units."""
    lengths = [1, 4096, 1, 1]
    inputs, cu = case(lengths, 2, 8, dtype=dtype)
    ours = errors(lambda q, k, v: attention(q, k, v, cu, lengths, SLOPES), inputs, lengths, SLOPES)
    limit = 2e-6 if dtype == torch.float32 else 5e-3
    assert max(ours) < limit, ours


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("lengths", [[30, 1, 7], [65]])
def test_eager_equals_float64(lengths, window, alibi):
    """The eager operator sums slope * position where the kernel sums slope * distance: hence the looser bound."""
    inputs, _ = case(lengths, 2, 8)
    slopes = SLOPES if alibi else None
    found = errors(
        lambda q, k, v: attention_eager(q, k, v, lengths, slopes, 8**-0.5, window), inputs, lengths, slopes, window
    )
    assert max(found) < 1e-5, found


def test_same_bits_whatever_the_number_of_threads():
    lengths = [300, 5, 64]
    inputs, cu = case(lengths, 2, 16)
    threads = torch.get_num_threads()
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        out = attention(*inputs, cu, lengths, SLOPES)
        found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_sequences_do_not_see_each_other():
    lengths = [5, 1, 9]
    (q, k, v), cu = case(lengths, 4, 8)
    whole = attention(q, k, v, cu, lengths, SLOPES)
    for s, (a, n) in enumerate(zip(cu.tolist(), lengths)):
        alone = attention(q[a : a + n], k[a : a + n], v[a : a + n], torch.tensor([0, n]).int(), [n], SLOPES)
        assert torch.equal(whole[a : a + n], alone), s


@settings(deadline=None, max_examples=40)
@given(
    pieces=st.lists(st.sampled_from([1, 7, 16, 63, 64, 65, 130, 256, 300]), min_size=1, max_size=4),
    queries=st.integers(1, 300),
    groups=st.sampled_from([1, 4]),
    head_size=st.sampled_from([5, 16, 64]),
    alibi=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    dense=st.booleans(),
    window=st.sampled_from([None, 1, 20, 64, 150]),
)
def test_the_last_tokens_have_the_bits_of_the_whole_however_keys_are_cut(
    pieces, queries, groups, head_size, alibi, dtype, dense, window
):
    total, slopes = sum(pieces), SLOPES if alibi else None
    queries = min(queries, total)
    inputs, cu = case([total], groups, head_size, queries, dtype)
    q, k, v = (x.detach() for x in inputs)
    whole = attention(q, k, v, cu, [total], slopes, None, window)
    assert has_attention_after(q)
    segments = list(zip(k.split(pieces), v.split(pieces)))
    if dense:  # heads outermost, and NaNs behind: nothing after a segment's end may be looked at
        room = [[torch.full((groups, n + 9, head_size), torch.nan, dtype=dtype) for _ in "kv"] for n in pieces]
        for pair, roomy in zip(segments, room):
            for x, r in zip(pair, roomy):
                r[:, : len(x)] = x.transpose(0, 1)
        segments = [tuple(r[:, :n].transpose(0, 1) for r in roomy) for n, roomy in zip(pieces, room)]
    out = torch.empty(queries, 4, head_size, dtype=dtype)
    attention_after(q[-queries:], segments, slopes, head_size**-0.5, window, out)
    assert torch.equal(out, whole[-queries:])


def test_heads_adjacent_in_memory_with_a_size_that_is_no_multiple_of_16():
    """Two heads of 8 are as far apart as one of 16, and the memory after the last token holds NaN."""
    q = torch.randn(64, 4, 8, generator=torch.Generator().manual_seed(0))
    k, v = torch.randn(2, 65, 2, 8, generator=torch.Generator().manual_seed(1))
    k[64] = v[64] = torch.nan
    found = attention(q, k[:64], v[:64], torch.tensor([0, 64]).int(), [64])
    torch.testing.assert_close(found, attention_reference(q, k[:64], v[:64], [64]), rtol=1e-5, atol=1e-5)


def test_inputs_of_different_dtypes_or_shapes_are_refused():
    q, k = torch.zeros(4, 4, 16), torch.zeros(4, 2, 16)
    for other in (k.bfloat16(), torch.zeros(4, 3, 16)):
        with pytest.raises(AssertionError):
            attention(q, other, other, torch.tensor([0, 4]).int(), [4])
    with pytest.raises(AssertionError):
        attention(q, k, k, torch.tensor([0, 4]).int(), [4], None, None, 0)


def test_a_nan_reaches_only_the_queries_that_see_it():
    lengths = [6, 4]
    (q, k, v), cu = case(lengths, 4, 8)
    k.data[3, 0, 0] = float("nan")
    out = attention(q, k, v, cu, lengths)
    assert out[:, 0].isnan().all(1).tolist() == [False] * 3 + [True] * 3 + [False] * 4
    assert not out[:, 1:].isnan().any()


@pytest.mark.parametrize("function", [attention, lambda q, k, v, cu, n, slopes: attention_eager(q, k, v, n, slopes, 1)])
def test_empty_batch(function):
    q = torch.zeros(0, 4, 8, requires_grad=True)
    out = function(q, q, q, torch.zeros(1).int(), [], SLOPES)
    out.sum().backward()
    assert out.shape == q.grad.shape == (0, 4, 8)
