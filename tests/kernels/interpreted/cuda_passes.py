"""The passes on CUDA in Triton against their specification in float64: odd widths, strided rows, each combination."""

import pytest
import torch

from kernels.cuda_passes import Norm, add_norm_reference, gated_reference, gelu_reference
from kernels.cuda_passes.fused import BLOCK, add_norm_triton, gated_triton, gelu_triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Added, inner norm, norm (its bias, centred), next bias.
CASES = {
    "rms norm": (False, False, (False, False), False),
    "layer norm and next bias": (False, False, (True, False), True),
    "add, rms norm": (True, False, (False, False), False),
    "add, layer norm, next bias": (True, False, (True, False), True),
    "add normed, centred norm": (True, True, (False, True), False),
    "add normed": (True, True, None, False),
}


def random_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def wide(x):
    """The same arguments in float64."""
    if isinstance(x, Norm):
        return Norm(*map(wide, x))
    return x.double() if isinstance(x, torch.Tensor) else x


def assert_rounded(found, truth, dtype, slack=4e-6):
    assert found.dtype == dtype and found.shape == truth.shape
    bound = torch.finfo(dtype).eps / 2 * truth.abs() * 1.01 + slack * truth.abs().max()
    assert ((found.double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 48, 129])
def test_norms(name, dtype, width):
    """y is the norm of r as rounded to the dtype: its truth starts from that r."""
    added, inner, outer, has_next = CASES[name]
    random = random_of(width)
    h, x = (1 + random(4, 3 * width).to(dtype)[:, width : 2 * width] for _ in range(2))
    norm = outer and Norm(random(width).to(dtype), random(width).to(dtype) if outer[0] else None, 1e-5, outer[1])
    x_norm = Norm(random(width).to(dtype), None, 1e-3, True) if inner else None
    next_bias = random(width).to(dtype) if has_next else None
    before = h.clone(), x.clone()
    r, y = add_norm_triton(h, x if added else None, norm, x_norm, next_bias)
    assert h.equal(before[0]) and x.equal(before[1])
    sum_only = add_norm_triton(h, x, None, x_norm)[0] if added else h
    assert_rounded(sum_only, add_norm_reference(wide(h), wide(x), None, wide(x_norm))[0] if added else h, dtype)
    if has_next:
        assert_rounded(r, sum_only.double() + next_bias.double(), dtype)
    else:
        assert r.equal(sum_only)
    if norm is None:
        assert y is None
    elif width > 1 or norm.bias_D is None:
        assert_rounded(y, add_norm_reference(wide(sum_only), None, wide(norm))[1], dtype, 2e-5)
    else:
        assert y.equal(norm.bias_D.expand(4, 1)), "one number is its own mean"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 80, BLOCK + 3])
def test_activations(dtype, width):
    """Numbers up to the largest of float16, whose cubes overflow; halves of one product."""
    y = random_of(width)(3, 2 * width).to(dtype) * 3
    y[0, :: max(1, width // 7)] *= 2000
    y[1, :width] = -y[1, :width].abs() - 1
    gate, up = y.chunk(2, 1)
    for name in ("swiglu", "geglu"):
        truth = gated_reference(name, gate.double(), up.double())
        assert_close(gated_triton(name, gate, up), truth, gate, up, dtype)
        assert gated_triton(name, gate[2:], up[2:]).equal(gated_triton(name, gate, up)[2:])
    assert_close(gelu_triton(gate), gelu_reference(gate.double()), gate, torch.ones(1), dtype)


def assert_close(found, truth, gate, up, dtype):
    """Against the magnitude of the inputs: where the activation is tiny, float64 itself computes 1 - 1."""
    assert found.dtype == dtype and found.shape == truth.shape
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    largest = torch.finfo(dtype).max
    assert (found.double().isinf() == (truth.abs() > largest)).all() or dtype != torch.float16
    inside = truth.abs() <= largest
    error = (found.double() - truth).abs()[inside]
    assert (error <= (eps / 2 * truth.abs() * 1.01 + 1e-6 * (gate.double() * up.double()).abs() + tiny)[inside]).all()
