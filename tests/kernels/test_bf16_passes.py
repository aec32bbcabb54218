"""RMSNorm, rotation and gated activation in bfloat16: forward and each gradient against float64; fixed bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import bf16_passes
from kernels.bf16_passes.cpu import library
from kernels.passes import reference
from kernels.rotary import rotate_reference

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler here")


def rotated(rotate):
    def of(x_TN, angle_TN):
        angles = angle_TN.detach()[:, None, : x_TN.shape[1] // 2].float()
        cos, sin = angles.cos(), angles.sin()
        x_THK = x_TN.unflatten(0, (-1, 1)).repeat(1, 3, 1) * torch.tensor([1.0, -1.0, 0.5])[:, None].to(x_TN)
        return rotate(x_THK, *((cos, sin) if x_TN.dtype == torch.bfloat16 else (cos.to(x_TN), sin.to(x_TN))))

    return of


PASSES = {
    "rms_norm": (lambda x, y: bf16_passes.rms_norm(x, y[0], 1e-5), lambda x, y: reference.rms_norm(x, y[0], 1e-5)),
    "swiglu": (bf16_passes.swiglu, reference.swiglu),
    "rotate": (rotated(bf16_passes.rotate), rotated(lambda x, c, s: rotate_reference(x, c, s).to(x.dtype))),
}


def run(of, x, y, dtype):
    """Output, and gradients of x and y, of numbers that bfloat16 holds."""
    x, y = (tensor.to(dtype).requires_grad_() for tensor in (x, y))
    out = of(x, y)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).bfloat16().to(dtype)
    out.backward(grad)
    return [tensor.detach() for tensor in (out, x.grad, y.grad) if tensor is not None]


def inputs(rows, width, scale=1.0):
    generator = torch.Generator().manual_seed(rows + width)
    return [(torch.randn(rows, width, generator=generator) * scale).bfloat16() for _ in range(2)]


@given(
    name=st.sampled_from(list(PASSES)),
    rows=st.sampled_from([1, 2, 63, 64, 65, 200]),
    width=st.sampled_from([2, 16, 18, 62, 66, 128, 500]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_less_exact_than_pytorch(name, rows, width, scale):
    ours, plain = PASSES[name]
    x, y = inputs(rows, width, scale)
    truth = run(plain, x, y, torch.float64)
    for got, theirs, right in zip(
        run(ours, x, y, torch.bfloat16), run(plain, x, y, torch.bfloat16), truth, strict=True
    ):
        assert got.dtype == torch.bfloat16
        rounding = (right.bfloat16() - right).abs().max()
        error, allowed = (got - right).abs().max(), 1.01 * rounding + 1e-6 * right.abs().max()
        assert error <= max(allowed, (theirs - right).abs().max()), (error, allowed)


@pytest.mark.parametrize("name", PASSES)
def test_the_same_bits_on_any_number_of_threads(name):
    ours, _ = PASSES[name]
    x, y = inputs(400, 130)
    threads, once = torch.get_num_threads(), run(ours, x, y, torch.bfloat16)
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert all(torch.equal(a, b) for a, b in zip(run(ours, x, y, torch.bfloat16), once))
    finally:
        torch.set_num_threads(threads)
    alone = ours(x[7:9], y if name == "rms_norm" else y[7:9])
    assert torch.equal(alone, once[0][7:9]), "a row does not depend on its place"


@pytest.mark.parametrize("name", PASSES)
def test_what_is_not_finite_stays_so(name):
    ours, _ = PASSES[name]
    x, y = inputs(3, 32)
    x[1, 5] = torch.nan
    out, dx, *_ = run(ours, x, y, torch.bfloat16)
    assert out[1].isnan().any() and not out[0].isnan().any() and not out[2].isnan().any()
    assert name == "rotate" or dx[1].isnan().any()


def test_where_they_do_not_serve():
    x = torch.zeros(2, 4, dtype=torch.bfloat16)
    assert bf16_passes.fits(x)
    assert not bf16_passes.fits(x.float()) and not bf16_passes.fits(x.to("meta"))
