"""coded_linear in Triton against its specification: the values to the bit, sums within float32's error of their order.

Inputs and outputs around the tiles and the groups of 32, one to many parts, strided rows, biases.
"""

import pytest
import torch
from torch import Tensor

from engine.models.quantised import quantise
from kernels.coded_linear import fused, tiles
from kernels.common.codes import Codes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows, outputs, inputs: tiles are 16 to 128 rows, 32 to 128 columns and 32 to 128 of the inner dimension.
CASES = [(1, 40, 100), (7, 33, 64), (64, 36, 150), (130, 129, 40), (1, 1, 290)]


@pytest.fixture(autouse=True)
def many_parts(monkeypatch):
    """Cut the inner dimension of small weights too."""
    monkeypatch.setattr(tiles, "PART", 64)


def weight_of(outputs, inputs, trunk_dtype):
    weight_NI = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(inputs))
    return Codes(*quantise(weight_NI, trunk_dtype), inputs)


def rows_of(rows, width, dtype):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(dtype)


def assert_close(found: Tensor, exact: Tensor, magnitude: Tensor, terms: int) -> None:
    """A float32 sum of n terms in any order errs by at most (n - 1) eps/2 times the sum of magnitudes.

    It is then rounded once. `exact` is float64, `magnitude` the sum of absolute values; n counts the bias, and one more
    for the second order.
    """
    half = torch.finfo(torch.float32).eps / 2
    sums = (terms + 1) * half * magnitude
    once = torch.finfo(found.dtype).eps / 2 * (exact.abs() + sums) + torch.finfo(found.dtype).smallest_normal
    assert ((found.double() - exact).abs() <= sums + once * (found.dtype != torch.float32)).all()


@pytest.mark.parametrize("trunk_dtype", ["int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [31, 64, 129])
def test_values_are_exact(trunk_dtype, dtype, inputs):
    """Rows of the identity: each sum has one term that is not 0."""
    weight = weight_of(45, inputs, trunk_dtype)
    value_NI = weight._replace(dtype=dtype).values()
    assert fused.coded_linear_triton(torch.eye(inputs, dtype=dtype), weight).equal(value_NI.T)
    assert fused.coded_linear_gradient_triton(torch.eye(45, dtype=dtype), weight).equal(value_NI)


@pytest.mark.parametrize("trunk_dtype", ["int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), CASES)
def test_product_and_gradient(rows, outputs, inputs, dtype, trunk_dtype):
    weight = weight_of(outputs, inputs, trunk_dtype)
    x_TI, grad_TN, bias_N = (rows_of(n, w, dtype) for n, w in ((rows, inputs), (rows, outputs), (1, outputs)))
    value_NI, bias_N = weight._replace(dtype=dtype).values().double(), bias_N[0]
    found = fused.coded_linear_triton(x_TI, weight, bias_N)
    assert found.dtype == dtype
    exact, size = x_TI.double() @ value_NI.T + bias_N.double(), x_TI.double().abs() @ value_NI.abs().T
    assert_close(found, exact, size + bias_N.double().abs(), inputs + 1)
    found = fused.coded_linear_gradient_triton(grad_TN, weight)
    assert_close(found, grad_TN.double() @ value_NI, grad_TN.double().abs() @ value_NI.abs(), outputs)


@pytest.mark.parametrize("trunk_dtype", ["int8", "int4"])
@pytest.mark.parametrize("rows", [7, 64])
def test_strided_rows(rows, trunk_dtype):
    """Every second column of every third row, and a transposed matrix: the bits of their copies."""
    weight = weight_of(33, 70, trunk_dtype)
    wide = rows_of(3 * rows, 140, torch.bfloat16)
    for x_TI in (wide[::3, ::2], rows_of(70, rows, torch.bfloat16).T, wide[0, :70].expand(rows, 70)):
        found = fused.coded_linear_triton(x_TI, weight)
        assert found.equal(fused.coded_linear_triton(x_TI.contiguous(), weight))
        assert found.any()


def test_no_rows():
    weight = weight_of(5, 40, "int4")
    assert fused.coded_linear_triton(torch.empty(0, 40), weight).shape == (0, 5)
    assert fused.coded_linear_gradient_triton(torch.empty(0, 5), weight).shape == (0, 40)
