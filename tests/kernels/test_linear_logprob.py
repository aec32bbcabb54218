"""linear_logprob against float64: parity of both backends, forward and each gradient, at sizes and values that hurt."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.common.bench import extra_bytes
from kernels.linear_logprob import cpu, linear_logprob, linear_logprob_pair, linear_logprob_reference
from tests.kernels.logprob_problems import NAMES, errors, outputs_and_gradients, plain, problem, shrink_blocks, truth_of


@pytest.fixture(params=["native", "eager"])
def backend(request, monkeypatch):
    if request.param == "eager":
        monkeypatch.setattr(cpu, "library", lambda: None)
    elif cpu.library() is None:
        pytest.skip("no C++ compiler")
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    shrink_blocks(monkeypatch)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.sampled_from([0, 1, 2, 15, 16, 17, 33, 70]),
    vocab=st.sampled_from([1, 2, 31, 97, 256, 1009]),
    size=st.sampled_from([1, 5, 12, 32, 64]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 10.0]),
    shift=st.sampled_from([0.0, 0.0, -1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    with_bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_no_worse_than_plain_pytorch(
    backend, small_blocks, tokens, vocab, size, temperature, shift, dtype, with_bias, seed
):
    """The accuracy rule, case by case: twice plain's error is allowed, and four units in the logits' last place."""
    h, W, target, ref, bias, weights = problem(tokens, vocab, size, seed, dtype, shift=shift, with_bias=with_bias)
    arguments = h, W, target, ref, temperature, bias, weights
    truth = truth_of(*arguments)
    logits = h.double() @ W.double().T / temperature
    step = 4 * torch.finfo(torch.float32).eps * max([1.0, *logits.abs().amax(1).tolist()])
    step += torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
    for name, ours, theirs in zip(
        NAMES, errors(linear_logprob_pair, truth, *arguments), errors(plain, truth, *arguments)
    ):
        assert ours <= 2 * theirs + step, (name, ours, theirs, step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_average_no_worse_than_plain_pytorch(backend, small_blocks, dtype):
    """The accuracy rule without slack for one problem's chance: mean largest error over 24 of them."""
    ours, theirs = [], []
    for seed in range(24):
        h, W, target, ref, bias, weights = problem(40, 509, 48, seed, dtype, scale=(0.1, 0.3, 1.0)[seed % 3])
        arguments = h, W, target, ref, (1.0, 0.7)[seed % 2], bias, weights
        truth = truth_of(*arguments)
        ours.append(errors(linear_logprob_pair, truth, *arguments))
        theirs.append(errors(plain, truth, *arguments))
    ratio = np.mean(ours, 0) / np.mean(theirs, 0)
    assert (ratio < 1.05).all(), dict(zip(NAMES, ratio))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blooms_vocabulary(backend, dtype):
    arguments = problem(3, 250_880, 8, 0, dtype)
    arguments = *arguments[:4], 1.0, *arguments[4:]
    truth = truth_of(*arguments)
    for ours, theirs in zip(errors(linear_logprob_pair, truth, *arguments), errors(plain, truth, *arguments)):
        assert ours <= 1.5 * theirs + 1e-6


def test_a_confident_token_has_no_positive_logprob_in_bfloat16(backend):
    """logprob = exact target - logsumexp: taken from different roundings it would come out as +-0.1 here."""
    h, W, target, *_ = problem(64, 500, 64, 1, torch.bfloat16)
    h = W[target] * 0.3
    logprob = linear_logprob(h, W, target)[0]
    truth = linear_logprob_reference(h.double(), W.double(), target)[0]
    assert -1e-3 < truth.median() < truth.max() < 0
    assert logprob.max() <= 0
    torch.testing.assert_close(logprob.double(), truth, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("function", [linear_logprob, linear_logprob_reference])
def test_by_hand(function):
    """Logits ln 1, ln 2, ln 5 at temperature 1: p = 1/8, 2/8, 5/8."""
    W = torch.tensor([[1.0], [2.0], [5.0]]).log()
    logprob, logsumexp, entropy = function(torch.ones(1, 1), W, torch.tensor([1]))
    assert logprob.item() == pytest.approx(np.log(2 / 8))
    assert logsumexp.item() == pytest.approx(np.log(8))
    assert entropy.item() == pytest.approx(-(np.log(1 / 8) + 2 * np.log(2 / 8) + 5 * np.log(5 / 8)) / 8)


def test_a_reference_equal_to_the_policy(backend):
    h, W, target, _, bias, _ = problem(20, 300, 16, 0, with_bias=True)
    logprob, _, _, ref_logprob, kl = linear_logprob_pair(h, W, target, h, 0.7, bias)
    torch.testing.assert_close(logprob, ref_logprob, atol=1e-6, rtol=1e-6)
    assert kl.abs().max() < 1e-6


def test_the_pair_agrees_with_the_single(backend):
    h, W, target, ref, bias, _ = problem(20, 300, 16, 0, with_bias=True)
    pair = linear_logprob_pair(h, W, target, ref, 0.7, bias)
    single = (*linear_logprob(h, W, target, 0.7, bias), linear_logprob(ref, W, target, 0.7, bias)[0])
    for a, b in zip(pair[:4], single):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout(backend, dtype):
    h, W, target, ref, _, weights = problem(21, 203, 32, 0, dtype)
    straight = outputs_and_gradients(linear_logprob_pair, h, W, target, ref, 1.0, None, weights)
    wide = torch.zeros(203, 64, dtype=dtype)
    wide[:, ::2] = W
    for W_other in (W.T.contiguous().T, wide[:, ::2]):
        for h_other in (h.T.contiguous().T, torch.stack([h, h], 1)[:, 0]):
            h_leaf, W_leaf = h_other.detach().requires_grad_(), W_other.detach().requires_grad_()
            outputs = linear_logprob_pair(h_leaf, W_leaf, torch.stack([target, target], 1)[:, 0], ref)
            torch.stack([(o * w).sum() for o, w in zip(outputs, weights)]).sum().backward()
            for a, b in zip((*outputs, h_leaf.grad, W_leaf.grad), straight):
                torch.testing.assert_close(a.double(), b, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)


def test_barred_entries_have_no_probability(backend):
    h, W, target, ref, bias, _ = problem(17, 130, 8, 0, with_bias=True)
    bias[64:128] = float("-inf")
    target = target % 64
    kept = torch.cat([torch.arange(64), torch.arange(128, 130)])
    barred, without = h.clone().requires_grad_(), h.clone().requires_grad_()
    a = linear_logprob_pair(barred, W, target, ref, 1.0, bias)
    b = linear_logprob_pair(without, W[kept], target, ref, 1.0, bias[kept])
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    sum(x.sum() for x in a).backward()
    sum(x.sum() for x in b).backward()
    torch.testing.assert_close(barred.grad, without.grad, atol=1e-5, rtol=1e-5)


def test_a_nan_is_not_hidden(backend):
    h, W, target, *_ = problem(5, 300, 8, 0)
    h[2, 3] = float("nan")
    for out in linear_logprob(h, W, target):
        assert out.isnan().tolist() == [False, False, True, False, False]


def test_gradients_only_where_they_are_wanted(backend):
    h, W, target, *_ = problem(9, 50, 8, 0)
    linear_logprob(h.requires_grad_(), W, target)[0].sum().backward()
    assert W.grad is None and h.grad is not None
    both = W.clone().requires_grad_(), W.clone().requires_grad_()
    linear_logprob(h, both[0], target)[0].sum().backward()
    linear_logprob(h.detach(), both[1], target)[0].sum().backward()
    torch.testing.assert_close(both[0].grad, both[1].grad)


def test_same_bits_twice(backend):
    h, W, target, ref, bias, weights = problem(40, 3001, 32, 0, torch.bfloat16, with_bias=True)
    runs = [outputs_and_gradients(linear_logprob_pair, h, W, target, ref, 0.7, bias, weights) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(256, 100_003, 16), (4100, 400, 1024), (2100, 900, 2050), (20_000, 40, 900)])
def test_extra_memory_is_bounded(backend, dtype, shape):
    """Beyond inputs, outputs and gradients at most 64 MiB; the logits alone would be 100 MB; W is trained."""
    tokens, vocab, size = shape
    h, W, target, ref, *_ = problem(tokens, vocab, size, 0, dtype)
    h, W = h.requires_grad_(), W.requires_grad_()

    def step():
        outputs = linear_logprob_pair(h, W, target, ref)
        (outputs[0].sum() + outputs[2].sum() + outputs[4].sum()).backward()
        return *outputs, h.grad, W.grad

    assert extra_bytes(step) <= 64 << 20


def test_the_measure_of_memory_sees_what_is_held_for_a_moment():
    def step():
        x = torch.ones(1 << 20)
        return (x * 2).sum()

    assert 8 << 20 <= extra_bytes(step) < 9 << 20
