"""skinny_linear and rotation against float64 and plain PyTorch; a row's bits do not depend on its company."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.quantised import quantise
from kernels.linear_logprob import cpu as linear_logprob
from kernels.linear_logprob.bfloat16 import has_amx
from kernels.rotary import rotate_in_place, rotate_reference
from kernels.skinny_linear import MAX_ROWS_ON_VECTORS, Codes, Norm, fits, skinny_linear, skinny_linear_reference
from kernels.skinny_linear.cpu import has_matrix_unit, library
from tests.kernels.units import each_way, no_unit, run_on

needs_compiler = pytest.mark.skipif(library() is None, reason="no C++ compiler here")


def arguments(rows, width, sizes, norm, biased, activation, with_residual, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weights = [random(n, width) * scale / width**0.5 for n in sizes]
    biases = [random(n) if biased else None for n in sizes]
    norms = {
        "none": None,
        "rms": Norm(random(width), None, 1e-5),
        "layer": Norm(random(width), random(width), 1e-5),
        "centred": Norm(random(width), None, 1e-5, True),
    }
    out = sizes[0] if activation in ("swiglu", "geglu") else sum(sizes)
    return (
        random(rows, width) + 0.5,
        weights,
        biases,
        norms[norm],
        activation,
        random(rows, out) if with_residual else None,
    )


def doubled(x):
    if isinstance(x, torch.Tensor):
        return x.double()
    if isinstance(x, Norm):
        return Norm(*(doubled(y) for y in x))
    return [doubled(y) for y in x] if isinstance(x, list) else x


@needs_compiler
@each_way
@given(
    rows=st.integers(1, 300), width=st.sampled_from([1, 2, 15, 16, 17, 61, 127, 128, 129, 300]),
    sizes=st.lists(st.sampled_from([1, 3, 8, 15, 16, 17, 33, 130]), min_size=1, max_size=3),
    norm=st.sampled_from(["none", "rms", "layer", "centred"]), biased=st.booleans(),
    activation=st.sampled_from([None, "gelu", "swiglu", "geglu"]), with_residual=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_less_exact_than_pytorch(unit, rows, width, sizes, norm, biased, activation, with_residual, seed):
    sizes = [sizes[0]] * 2 if activation in ("swiglu", "geglu") else sizes
    args = arguments(rows, width, sizes, norm, biased, activation, with_residual, seed)
    truth = skinny_linear_reference(*map(doubled, args))
    with run_on(unit):
        ours = skinny_linear(*args)
    plain = skinny_linear_reference(*args)
    assert ours.shape == truth.shape
    allowed = 2 * (plain - truth).abs().max() + 2e-6 * truth.abs().max()
    assert (ours - truth).abs().max() <= allowed


def coded(weight_NI, bits):
    return Codes(*quantise(weight_NI, f"int{bits}"), weight_NI.shape[1])


@needs_compiler
@each_way
@pytest.mark.parametrize("bits", [8, 4])
@given(
    rows=st.integers(1, 64), width=st.sampled_from([1, 15, 16, 17, 31, 32, 33, 61, 64, 65, 127, 130, 300]),
    sizes=st.lists(st.sampled_from([1, 3, 15, 16, 17, 47, 130]), min_size=1, max_size=3),
    norm=st.sampled_from(["none", "rms", "layer", "centred"]), activation=st.sampled_from([None, "gelu", "swiglu"]),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_codes_give_the_bits_of_their_values(unit, bits, rows, width, sizes, norm, activation, seed):
    """And the error of float32: the value of a code has at most 15 bits, so it is exact."""
    sizes = [sizes[0]] * 2 if activation == "swiglu" else sizes
    x_TD, weights, *rest = arguments(rows, width, sizes, norm, True, activation, True, seed)
    codes = [coded(w, bits) for w in weights]
    codes[0] = codes[0] if seed % 2 else codes[0].values()  # beside an ordinary weight, too
    values = [c.values() if isinstance(c, Codes) else c for c in codes]
    with run_on(unit):
        ours = skinny_linear(x_TD, codes, *rest)
        assert torch.equal(ours, skinny_linear(x_TD, values, *rest))
    truth = skinny_linear_reference(*map(doubled, (x_TD, values, *rest)))
    assert torch.equal(truth, skinny_linear_reference(doubled(x_TD), codes_in_float64(codes), *map(doubled, rest)))
    plain = skinny_linear_reference(x_TD, values, *rest)
    assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + 2e-6 * truth.abs().max()


def codes_in_float64(codes):
    return [c if isinstance(c, Codes) else c.double() for c in codes]


@needs_compiler
@each_way
@pytest.mark.parametrize("bits", [8, 4])
def test_a_long_output_of_codes_and_any_number_of_threads(unit, bits):
    generator = torch.Generator().manual_seed(3)
    x_TD, weight_NI = torch.randn(40, 96, generator=generator), torch.randn(2600, 96, generator=generator)
    codes, threads = coded(weight_NI, bits), torch.get_num_threads()
    with run_on(unit):
        expected = skinny_linear(x_TD, [codes.values()], [None])
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                assert torch.equal(skinny_linear(x_TD, [codes], [None]), expected)
        finally:
            torch.set_num_threads(threads)


@needs_compiler
@each_way
@pytest.mark.parametrize("width", [512, 2048])
def test_the_error_over_many_outputs_is_that_of_float32(unit, width):
    """On vectors no larger than PyTorch's; the matrix unit rounds six sums where a vector rounds one."""
    errors = []
    for rows in (1, 4, 32):
        args = arguments(rows, width, [512], "none", False, None, False, rows)
        truth = skinny_linear_reference(*map(doubled, args))
        with run_on(unit):
            errors.append([(f(*args) - truth).square().mean().sqrt() for f in (skinny_linear, skinny_linear_reference)])
    ours, plain = (sum(e) for e in zip(*errors))
    assert ours <= (1.5 if unit else 1.05) * plain


@needs_compiler
@each_way
@given(
    seed=st.integers(0, 99),
    rows=st.integers(2, 300),
    width=st.sampled_from([16, 61, 260]),
    norm=st.sampled_from(["none", "rms", "layer", "centred"]),
)
@settings(max_examples=25, deadline=None)
def test_a_row_has_the_same_bits_alone_in_any_company_and_on_any_number_of_threads(unit, seed, rows, width, norm):
    with run_on(unit):
        check_company(seed, rows, width, norm)


def check_company(seed, rows, width, norm):
    x, weights, biases, norms, _, residual = arguments(rows, width, [33, 33], norm, True, None, True, seed)
    for activation in (None, "gelu", "swiglu", "geglu"):
        residual_TN = residual[:, :33] if activation in ("swiglu", "geglu") else residual
        together = skinny_linear(x, weights, biases, norms, activation, residual_TN)
        for i in {0, rows // 2, rows - 1}:
            alone = skinny_linear(x[i : i + 1], weights, biases, norms, activation, residual_TN[i : i + 1])
            assert torch.equal(alone[0], together[i])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert torch.equal(skinny_linear(x, weights, biases, norms, activation, residual_TN), together)
        finally:
            torch.set_num_threads(threads)


@needs_compiler
@each_way
@pytest.mark.parametrize("activation", [None, "gelu", "swiglu", "geglu"])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_a_long_output_is_its_parts_side_by_side(unit, rows, activation):
    """Longer outputs are computed in blocks of columns, blocks in tiles; here a tile's rows are others in each part."""
    gated = activation in ("swiglu", "geglu")
    args = arguments(rows, 48, [2601] * (1 + gated), "rms", True, activation, True, rows)
    x, weights, biases, norm, _, residual = args
    with run_on(unit):
        together = skinny_linear(*args)
        for part in (slice(0, 1003), slice(1003, 2100), slice(2100, 2601)):
            pieces = [w[part] for w in weights], [b[part] for b in biases]
            assert torch.equal(together[:, part], skinny_linear(x, *pieces, norm, activation, residual[:, part]))


@no_unit
def test_the_matrix_unit_keeps_every_bit_of_a_number():
    """Times powers of two, which it takes whole: the three parts of each number must come together again."""
    x = torch.randn(16, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 96)
    with run_on(True):
        assert torch.equal(skinny_linear(x, [torch.eye(96) * 0.5], [None]), x * 0.5)


@needs_compiler
def test_the_environment_can_turn_the_matrix_unit_off():
    """For the same bits as on a processor without one."""
    ask = "import ctypes, sys; print(*(getattr(ctypes.CDLL(sys.argv[i]), sys.argv[i + 1])() for i in (1, 3)))"
    functions = (library()._name, "has_matrix_unit", linear_logprob.library()._name, "logprob_has_amx")
    for value, expected in (("0", "0 0"), ("1", f"{has_matrix_unit():d} {has_amx()}")):
        environment = {**os.environ, "OKAPI_AMX": value}
        command = [sys.executable, "-c", ask, *functions]
        assert subprocess.check_output(command, env=environment, text=True).strip() == expected


@needs_compiler
def test_gates_far_out_neither_overflow_nor_vanish():
    x = torch.tensor([[-200.0], [-30.0], [0.0], [30.0], [200.0]])
    one = torch.ones(1, 1)
    for activation, weights in (("gelu", [one]), ("swiglu", [one, one]), ("geglu", [one, one])):
        args = (x, weights, [None] * len(weights), None, activation)
        torch.testing.assert_close(skinny_linear(*args), skinny_linear_reference(*args), rtol=1e-5, atol=1e-8)


def test_where_it_is_not_the_fast_way_it_says_so():
    x, w = torch.zeros(2, 4), torch.zeros(3, 4)
    assert not fits(x, w), "a gradient may be wanted"
    with torch.no_grad():
        assert fits(x, w) == (library() is not None)
        with run_on(unit=False):
            assert not fits(torch.zeros(MAX_ROWS_ON_VECTORS + 1, 4), w)
        assert not fits(x.bfloat16(), w.bfloat16())
        assert not fits(x.double(), w.double())
        assert not fits(x, torch.zeros(0)), "ZeRO-3's stump of a weight"


@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([2, 6, 32, 64]), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_rotation_in_place(rows, heads, size, seed):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(rows, heads + 2, size, generator=generator)
    before, angle = wide.clone(), torch.rand(rows, 1, size // 2, generator=generator)
    rotate_in_place(wide.narrow(1, 0, heads), angle.cos(), angle.sin())
    torch.testing.assert_close(wide[:, :heads], rotate_reference(before[:, :heads], angle.cos(), angle.sin()))
    assert torch.equal(wide[:, heads:], before[:, heads:]), "beside what was asked for"
