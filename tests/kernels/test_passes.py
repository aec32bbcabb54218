"""Norm and activations in one pass each, against float64 and plain PyTorch; a row's bits do not depend on its place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import passes
from kernels.passes import reference
from kernels.passes.cpu import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler here")

PASSES = {
    "rms_norm": (lambda x, y: passes.rms_norm(x, y[0], 1e-5), lambda x, y: reference.rms_norm(x, y[0], 1e-5)),
    "centred rms_norm": (
        lambda x, y: passes.rms_norm(x, y[0], 1e-5, True),
        lambda x, y: reference.rms_norm(x, y[0], 1e-5, True),
    ),
    "residual + rms_norm": (
        lambda x, y: passes.add_rms_norm(y[:1].expand_as(x), x, y[0], 1e-5, True),
        lambda x, y: y[:1] + reference.rms_norm(x, y[0], 1e-5, True),
    ),
    "gelu": (lambda x, _: passes.gelu_in_place(x.clone()), lambda x, _: reference.gelu(x)),
    "swiglu": (lambda x, y: passes.swiglu_in_place(x.clone(), y), reference.swiglu),
    "geglu": (lambda x, y: passes.geglu_in_place(x.clone(), y), reference.geglu),
}


def inputs(rows, width, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator) * scale for _ in range(2)]


@given(
    name=st.sampled_from(list(PASSES)),
    rows=st.sampled_from([1, 2, 33, 200]),
    width=st.sampled_from([1, 15, 16, 17, 63, 65, 128, 500]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_less_exact_than_pytorch(name, rows, width, scale):
    ours, plain = PASSES[name]
    x, y = inputs(rows, width, rows, scale)
    truth = plain(x.double(), y.double())
    allowed = 2 * (plain(x, y) - truth).abs().max() + 1e-6 * truth.abs().max()
    assert (ours(x, y) - truth).abs().max() <= allowed


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("width", [17, 500])
def test_a_row_has_the_same_bits_anywhere_and_on_any_number_of_threads(name, width):
    ours, _ = PASSES[name]
    x, y = inputs(120, width, 0)
    threads, together = torch.get_num_threads(), ours(x, y)
    try:
        for n, first, last in ((1, 0, 120), (3, 0, 120), (1, 7, 8), (2, 31, 100)):
            torch.set_num_threads(n)
            there = y if "norm" in name else y[first:last]
            assert torch.equal(ours(x[first:last], there), together[first:last])
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_norm_of_some_heads_in_place():
    y_THK = torch.randn(9, 5, 24, generator=torch.Generator().manual_seed(0))
    weight_K, before = torch.randn(24), y_THK.clone()
    passes.rms_norm_in_place(y_THK.narrow(1, 1, 3), weight_K, 1e-6, True)
    expected = reference.rms_norm(before[:, 1:4].double(), weight_K.double(), 1e-6, True)
    torch.testing.assert_close(y_THK[:, 1:4].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(y_THK[:, [0, 4]], before[:, [0, 4]])


@pytest.mark.parametrize("name", ["gelu", "swiglu", "geglu"])
def test_far_out_they_neither_overflow_nor_vanish(name):
    ours, plain = PASSES[name]
    x = torch.tensor([-1e30, -200.0, -30.0, 0.0, 30.0, 200.0, 1e30])
    torch.testing.assert_close(ours(x, torch.ones(7)), plain(x, torch.ones(7)), rtol=1e-5, atol=1e-8)
    assert ours(torch.tensor([torch.nan]), torch.ones(1)).isnan().all()


def test_where_they_do_not_serve():
    x = torch.zeros(2, 4)
    assert not passes.fits(x, x), "a gradient may be wanted"
    with torch.no_grad():
        assert passes.fits(x, x)
        assert not passes.fits(x.bfloat16(), x.bfloat16())
        assert not passes.fits(x, x.double())
        assert not passes.fits(x.to("meta"), x.to("meta"))
