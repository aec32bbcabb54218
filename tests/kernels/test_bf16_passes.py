"""RMSNorm, rotation and gated activations in bfloat16: forward and each gradient against float64; fixed bits."""

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
    def of(x_TN, angle_TN, z_TN):
        angles = angle_TN.detach()[:, None, : x_TN.shape[1] // 2].float()
        cos, sin = angles.cos(), angles.sin()
        x_THK = torch.stack((x_TN, z_TN), dim=1)
        return rotate(x_THK, *((cos, sin) if x_TN.dtype == torch.bfloat16 else (cos.to(x_TN), sin.to(x_TN))))

    return of


def centred(x, weight_D, residual=None):
    """What engine.models.layers.ZeroCenteredRMSNorm does without the kernel; in float64, all of it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = reference.rms_norm(x.to(wide), weight_D.to(wide), 1e-6, centred=True).to(x.dtype)
    return y if residual is None else residual + y


# Each of three tensors [rows, width].
PASSES = {
    "rms_norm": (
        lambda x, y, z: bf16_passes.rms_norm(x, y[0], 1e-5),
        lambda x, y, z: reference.rms_norm(x, y[0], 1e-5),
    ),
    "rms_norm, centred": (
        lambda x, y, z: bf16_passes.rms_norm(x, y[0], 1e-6, centred=True),
        lambda x, y, z: centred(x, y[0]),
    ),
    "rms_norm, centred, residual": (
        lambda x, y, z: bf16_passes.rms_norm(x, y[0], 1e-6, centred=True, residual=z),
        lambda x, y, z: centred(x, y[0], z),
    ),
    "rms_norm, centred, heads": (
        lambda x, y, z: bf16_passes.rms_norm(heads(x), y[0, ::2], 1e-6, centred=True),
        lambda x, y, z: centred(heads(x), y[0, ::2]),
    ),
    "swiglu": (lambda x, y, z: bf16_passes.swiglu(x, y), lambda x, y, z: reference.swiglu(x, y)),
    "geglu": (lambda x, y, z: bf16_passes.geglu(x, y), lambda x, y, z: reference.geglu(x, y)),
    "rotate": (rotated(bf16_passes.rotate), rotated(lambda x, c, s: rotate_reference(x, c, s).to(x.dtype))),
}


def heads(x):
    return x.unflatten(1, (2, -1))


def run(of, tensors, dtype):
    """Output, and gradients of those tensors that it depends on, of numbers that bfloat16 holds."""
    # Copies: a tensor of the right dtype would keep the gradients of the run before.
    tensors = [tensor.to(dtype, copy=True).requires_grad_() for tensor in tensors]
    out = of(*tensors)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).bfloat16().to(dtype)
    out.backward(grad)
    return [tensor.detach() for tensor in (out, *(t.grad for t in tensors)) if tensor is not None]


def inputs(rows, width, scale=1.0):
    generator = torch.Generator().manual_seed(rows + width)
    return [(torch.randn(rows, width, generator=generator) * scale).bfloat16() for _ in range(3)]


@given(
    name=st.sampled_from(list(PASSES)),
    rows=st.sampled_from([1, 2, 63, 64, 65, 200]),
    width=st.sampled_from([4, 16, 18, 62, 66, 128, 500]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(max_examples=140, deadline=None)
def test_no_less_exact_than_pytorch(name, rows, width, scale):
    ours, plain = PASSES[name]
    given = inputs(rows, width, scale)
    truth = run(plain, given, torch.float64)
    for got, theirs, right in zip(
        run(ours, given, torch.bfloat16), run(plain, given, torch.bfloat16), truth, strict=True
    ):
        assert got.dtype == torch.bfloat16
        rounding = (right.bfloat16() - right).abs().max()
        error, allowed = (got - right).abs().max(), 1.01 * rounding + 1e-6 * right.abs().max()
        assert error <= max(allowed, (theirs - right).abs().max()), (error, allowed)


@pytest.mark.parametrize("name", PASSES)
def test_the_same_bits_on_any_number_of_threads(name):
    ours, _ = PASSES[name]
    x, y, z = inputs(400, 130)
    threads, once = torch.get_num_threads(), run(ours, (x, y, z), torch.bfloat16)
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert all(torch.equal(a, b) for a, b in zip(run(ours, (x, y, z), torch.bfloat16), once))
    finally:
        torch.set_num_threads(threads)
    alone = ours(x[7:9], y if name.startswith("rms_norm") else y[7:9], z[7:9])
    assert torch.equal(alone, once[0][7:9]), "a row does not depend on its place"


@pytest.mark.parametrize("name", PASSES)
def test_what_is_not_finite_stays_so(name):
    ours, _ = PASSES[name]
    x, y, z = inputs(3, 32)
    x[1, 5] = torch.nan
    out, dx, *_ = run(ours, (x, y, z), torch.bfloat16)
    assert out[1].isnan().any() and not out[0].isnan().any() and not out[2].isnan().any()
    assert name == "rotate" or dx[1].isnan().any()


def test_geglu_of_large_numbers():
    """Cubes of these overflow in float32; the gate is then open or shut, and its slope 1 or 0."""
    gate = torch.tensor([3e38, 1e20, 1e13, 100.0, 16.0, 0.0, -16.0, -100.0, -1e13, -1e20, -3e38]).bfloat16()
    out, dgate, dup = run(lambda x, y: bf16_passes.geglu(x, y), (gate, torch.ones_like(gate)), torch.bfloat16)
    grad = torch.randn(gate.shape, generator=torch.Generator().manual_seed(9)).bfloat16()
    assert torch.equal(out, gate.relu())
    assert torch.equal(dgate, grad * torch.tensor([1.0] * 5 + [0.5] + [0.0] * 5).bfloat16())
    assert torch.equal(dup, (grad.float() * gate.relu().float()).bfloat16())


@pytest.mark.parametrize("residual", [False, True])
def test_a_norm_of_frozen_inputs(residual):
    """Only what needs a gradient gets one."""
    x, y, z = inputs(5, 32)
    weight_D = y[0].clone().requires_grad_()
    bf16_passes.rms_norm(x, weight_D, 1e-6, centred=True, residual=z if residual else None).sum().backward()
    assert weight_D.grad is not None and x.grad is None and z.grad is None


def test_where_they_do_not_serve():
    x = torch.zeros(2, 4, dtype=torch.bfloat16)
    assert bf16_passes.fits(x)
    assert not bf16_passes.fits(x.float()) and not bf16_passes.fits(x.to("meta"))
