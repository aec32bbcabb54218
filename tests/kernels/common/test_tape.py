"""Tapes: recorded calls give what the calls give, for any number of rows, and nothing is left out unnoticed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kernels.common import tape
from kernels.rotary import rotate_in_place
from kernels.skinny_linear import Norm, skinny_linear

pytestmark = pytest.mark.skipif(not tape.can_record(), reason="no C++ compiler here: nothing is recorded")

WEIGHTS = [torch.randn(24, 24, generator=torch.Generator().manual_seed(i)) / 5 for i in range(8)]
NORM = Norm(torch.linspace(0.5, 1.5, 24), None, 1e-6)


def layers(x_TD, cos, sin):
    """A residual stack with rotation in between, all of it in native calls."""
    for up, down in zip(WEIGHTS[::2], WEIGHTS[1::2]):
        inner_TN = skinny_linear(x_TD, [up], [None], NORM, "gelu")
        rotate_in_place(inner_TN.view(-1, 3, 8), cos, sin)
        x_TD = skinny_linear(inner_TN, [down], [None], residual_TN=x_TD)
    return x_TD


def inputs(rows):
    generator = torch.Generator().manual_seed(rows)
    return (torch.randn(rows, 24, generator=generator), *torch.randn(2, rows, 4, generator=generator).unbind())


def recorded(max_rows=20):
    kept = tuple(torch.zeros_like(x) for x in inputs(max_rows))
    with tape.record() as recording:
        out_TD = layers(*kept)
    return recording, kept, out_TD


def test_a_tape_gives_the_same_bits_for_any_number_of_rows():
    recording, kept, out_TD = recorded()
    for rows in (20, 1, 7, 3, 20):
        given = inputs(rows)
        for place, x in zip(kept, given):
            place[:rows] = x
        recording.run(rows)
        assert torch.equal(out_TD[:rows], layers(*given)), rows


def test_nothing_runs_while_it_is_recorded():
    kept = inputs(4)
    before = [x.clone() for x in kept]
    with tape.record():
        layers(*kept)
    assert all(torch.equal(x, old) for x, old in zip(kept, before))


def test_other_threads_run_while_one_records():
    given = inputs(4)
    expected = layers(*(x.clone() for x in given))
    with tape.record() as recording, ThreadPoolExecutor(1) as pool:
        out_TD = pool.submit(layers, *given).result()
    assert torch.equal(out_TD, expected)
    assert not recording._functions


def test_memory_of_dead_results_is_used_anew():
    """Four layers need the room of one: what is read at the same time never shares a place (the bits above say so)."""
    taken, x_TD = [], inputs(20)[0]
    with tape.record():
        for weight in WEIGHTS:
            x_TD = skinny_linear(x_TD, [weight], [None])
            taken.append(x_TD.data_ptr())
    assert len(set(taken)) == 2, "the one that is read and the one that is written"


@pytest.mark.parametrize("compute", [lambda x: x + 1, lambda x: x.clone(), lambda x: x.mT.contiguous(), torch.relu_])
def test_an_operation_of_torch_cannot_be_recorded(compute):
    x_TD = inputs(4)[0]
    with pytest.raises(tape.NotRecordable), tape.record():
        compute(skinny_linear(x_TD, [WEIGHTS[0]], [None]))
    assert torch.equal(layers(*inputs(4)), layers(*inputs(4))), "and calls run again afterwards"
