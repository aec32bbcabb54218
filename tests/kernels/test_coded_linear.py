"""coded_linear without Triton: its specification by hand, how a product is cut; and on a GPU, where there is one."""

import pytest
import torch

from engine.models.quantised import quantise
from kernels.coded_linear import (
    coded_linear,
    coded_linear_gradient,
    coded_linear_gradient_reference,
    coded_linear_reference,
)
from kernels.coded_linear.tiles import PART, PROGRAMS, part_size, sum_bytes, tiles_for
from kernels.common.codes import Codes

SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008), (640, 1000), (1, 1030), (250, 1024), (28672, 8192)]


def test_the_specification_by_hand():
    """Values 6, -4 and 1 (scale 2 and codes 3, -2; scale 0.5 and code 2), with inputs 32 apart."""
    codes = torch.zeros(1, 64, dtype=torch.int8)
    codes[0, [0, 1, 32]] = torch.tensor([3, -2, 2], dtype=torch.int8)
    weight = Codes(codes, torch.tensor([[2.0, 0.5]]).bfloat16(), 33)
    x_TI = torch.zeros(2, 33)
    x_TI[0, [0, 1, 32]], x_TI[1, 1] = torch.tensor([1.0, 10.0, 100.0]), 5.0
    assert coded_linear_reference(x_TI, weight, torch.tensor([0.5])).tolist() == [[66.5], [-19.5]]
    gradient_TI = coded_linear_gradient_reference(torch.tensor([[2.0]]), weight)
    assert gradient_TI[0, [0, 1, 2, 32]].tolist() == [12.0, -8.0, 0.0, 2.0]


@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize(("inner", "columns"), SHAPES)
def test_parts_cover_the_inner_dimension_and_their_sums_are_bounded(inner, columns, element_bytes):
    held = 0
    for rows in (1, 2, 16, 17, 63, 64, 65, 128, 129, 500, 1000, 5000):
        size = tiles_for(rows, element_bytes)
        tiles = -(-rows // size.M) * -(-columns // size.J)
        one = part_size(inner, tiles, size.K)
        parts = -(-inner // one)
        assert one % size.K == 0 and (parts - 1) * one < inner <= parts * one
        assert parts == 1 or one >= PART and tiles * parts <= PROGRAMS
        held = max(held, 4 * parts * rows * columns if parts > 1 else 0)
        assert held <= sum_bytes(rows, inner, columns) <= 4 * PROGRAMS * 128 * 128


def test_one_row_of_a_large_weight_fills_a_gpu():
    size = tiles_for(1, 2)
    assert -(-4096 // size.J) * -(-4096 // part_size(4096, 4096 // size.J, size.K)) == PROGRAMS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("trunk_dtype", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 64, 65, 700])
def test_on_a_gpu(rows, dtype, trunk_dtype):
    """Against the specification on the same GPU, for sizes that do not fill tiles; again from a CUDA graph."""
    generator = torch.Generator().manual_seed(rows)
    weight_NI = torch.randn(1100, 2084, generator=generator)
    weight = Codes(*(x.cuda() for x in quantise(weight_NI, trunk_dtype)), 2084)
    x_TI, grad_TN, bias_TN = (torch.randn(n, w, generator=generator).to("cuda", dtype)
                              for n, w in ((rows, 2084), (rows, 1100), (1, 1100)))  # fmt: skip
    calls = [
        (coded_linear, coded_linear_reference, (x_TI, weight, bias_TN[0])),
        (coded_linear_gradient, coded_linear_gradient_reference, (grad_TN, weight)),
    ]
    for function, reference, arguments in calls:
        found = function(*arguments)
        tolerance = 4e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(found, reference(*arguments), atol=tolerance * 45, rtol=tolerance)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again = function(*arguments)
        again.zero_()
        graph.replay()
        assert again.equal(found)
