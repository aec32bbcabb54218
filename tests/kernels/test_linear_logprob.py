"""linear_logprob against float64: outputs and gradients of both CPU backends, at difficult sizes and values."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.common.bench import extra_bytes
from kernels.linear_logprob import cpu, linear_logprob, linear_logprob_reference
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
    seed=st.integers(0, 999),
)
def test_no_worse_than_plain_pytorch(backend, small_blocks, tokens, vocab, size, temperature, shift, dtype, seed):
    """The accuracy rule per case: at most twice plain's error, plus four units in the logits' last place."""
    h, W, target, weights = problem(tokens, vocab, size, seed, dtype, shift=shift)
    arguments = h, W, target, temperature, weights
    truth = truth_of(*arguments)
    logits = h.double() @ W.double().T / temperature
    step = 4 * torch.finfo(torch.float32).eps * max([1.0, *logits.abs().amax(1).tolist()])
    step += torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
    for name, ours, theirs in zip(NAMES, errors(linear_logprob, truth, *arguments), errors(plain, truth, *arguments)):
        assert ours <= 2 * theirs + step, (name, ours, theirs, step)


@pytest.mark.parametrize("backend", ["native", pytest.param("eager", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_average_no_worse_than_plain_pytorch(backend, small_blocks, dtype):
    """The accuracy rule without slack: the mean over 24 problems of the largest error."""
    ours, theirs = [], []
    for seed in range(24):
        h, W, target, weights = problem(40, 509, 48, seed, dtype, scale=(0.1, 0.3, 1.0)[seed % 3])
        arguments = h, W, target, (1.0, 0.7)[seed % 2], weights
        truth = truth_of(*arguments)
        ours.append(errors(linear_logprob, truth, *arguments))
        theirs.append(errors(plain, truth, *arguments))
    ratio = np.mean(ours, 0) / np.mean(theirs, 0)
    assert (ratio < 1.05).all(), dict(zip(NAMES, ratio))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blooms_vocabulary(backend, dtype):
    h, W, target, weights = problem(3, 250_880, 8, 0, dtype)
    arguments = h, W, target, 1.0, weights
    truth = truth_of(*arguments)
    for ours, theirs in zip(errors(linear_logprob, truth, *arguments), errors(plain, truth, *arguments)):
        assert ours <= 1.5 * theirs + 1e-6


def test_logprob_of_confident_tokens_is_not_positive_in_bfloat16(backend):
    """logprob = exact target - logsumexp: from two different roundings it would come out as +-0.1 here."""
    h, W, target, _ = problem(64, 500, 64, 1, torch.bfloat16)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout(backend, dtype):
    h, W, target, weights = problem(21, 203, 32, 0, dtype)
    contiguous = outputs_and_gradients(linear_logprob, h, W, target, 1.0, weights)
    wide = torch.zeros(203, 64, dtype=dtype)
    wide[:, ::2] = W
    for W_other in (W.T.contiguous().T, wide[:, ::2]):
        for h_other in (h.T.contiguous().T, torch.stack([h, h], 1)[:, 0]):
            h_leaf, W_leaf = h_other.detach().requires_grad_(), W_other.detach().requires_grad_()
            outputs = linear_logprob(h_leaf, W_leaf, torch.stack([target, target], 1)[:, 0])
            torch.stack([(o * w).sum() for o, w in zip(outputs, weights)]).sum().backward()
            for a, b in zip((*outputs, h_leaf.grad, W_leaf.grad), contiguous):
                torch.testing.assert_close(a.double(), b, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)


def test_nan_stays_in_its_row(backend):
    h, W, target, _ = problem(5, 300, 8, 0)
    h[2, 3] = float("nan")
    for out in linear_logprob(h, W, target):
        assert out.isnan().tolist() == [False, False, True, False, False]


def test_gradients_only_where_required(backend):
    h, W, target, _ = problem(9, 50, 8, 0)
    linear_logprob(h.requires_grad_(), W, target)[0].sum().backward()
    assert W.grad is None and h.grad is not None
    both = W.clone().requires_grad_(), W.clone().requires_grad_()
    linear_logprob(h, both[0], target)[0].sum().backward()
    linear_logprob(h.detach(), both[1], target)[0].sum().backward()
    torch.testing.assert_close(both[0].grad, both[1].grad)


def test_same_bits_twice(backend):
    h, W, target, weights = problem(40, 3001, 32, 0, torch.bfloat16)
    runs = [outputs_and_gradients(linear_logprob, h, W, target, 0.7, weights) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [
    (256, 100_003, 16), (4100, 400, 1024), pytest.param((2100, 900, 2050), marks=pytest.mark.slow),
    pytest.param((20_000, 40, 900), marks=pytest.mark.slow),
])  # fmt: skip
def test_extra_memory_is_bounded(backend, dtype, shape):
    """At most 64 MiB beyond inputs, outputs and gradients, with W trained; the logits alone would be 100 MB."""
    h, W, target, _ = problem(*shape, 0, dtype)
    h, W = h.requires_grad_(), W.requires_grad_()

    def step():
        outputs = linear_logprob(h, W, target)
        (outputs[0].sum() + outputs[2].sum()).backward()
        return *outputs, h.grad, W.grad

    assert extra_bytes(step) <= 64 << 20


def test_extra_bytes_counts_temporary_tensors():
    def step():
        x = torch.ones(1 << 20)
        return (x * 2).sum()

    assert 8 << 20 <= extra_bytes(step) < 9 << 20
