"""rotate_and_write in Triton against its specification in float64: norms, odd head sizes, strided heads, pages."""

import pytest
import torch

from kernels.attention_decode import empty_pages
from kernels.rotary import Norm, rotate_and_write_reference
from kernels.rotary.fused import rotate_and_write_triton

DTYPES = (torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow))
# Heads, key/value heads, head size, with rotation, with norms (and whether they are centred), BLOOM's layout.
CASES = {
    "rotation": (4, 2, 20, True, None, False),
    "norms and rotation": (3, 1, 6, True, False, False),
    "centred norms and rotation": (2, 2, 64, True, True, False),
    "norms": (2, 1, 5, False, False, False),
    "neither": (3, 3, 5, False, None, True),
    "neither, one number": (2, 2, 1, False, None, True),
}


def arguments(name, dtype, write, rows=4):
    """Queries, keys and values as parts of one tensor, and the other arguments."""
    heads, kv_heads, size, rotated, centred, blooms = CASES[name]
    generator = torch.Generator().manual_seed(heads)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    y = random(rows, heads + 2 * kv_heads, size).to(dtype)
    q, k, v = y.unflatten(1, (heads, 3)).unbind(2) if blooms else y.split((heads, kv_heads, kv_heads), 1)
    angle = random(rows, 1, size // 2)
    rotation = (angle.cos(), angle.sin()) if rotated else None
    norms = None
    if centred is not None:
        norms = tuple(Norm(random(size).to(dtype), None, eps, centred) for eps in (1e-5, 1e-2))
    pages = None
    if write:
        k_pages, v_pages = empty_pages(3, kv_heads, 4, size, dtype, "cpu", (2,))
        k_pages.fill_(7.0)
        v_pages.fill_(8.0)
        pages = k_pages[1], v_pages[1], torch.tensor([2, 0, 2, 1, 2][:rows]), torch.tensor([0, 3, 1, 2, 3][:rows])
    return y, (q, k, v, rotation, norms, pages)


def outcome(function, y, found, wide=None):
    """Everything that the call may have written. wide computes in that dtype from the same numbers."""
    if wide is None:
        function(*found)
        return [y, *(found[5] or ())[:2]]
    q, k, v, rotation, norms, pages = found
    y = y.to(wide)
    q, k, v = (y.as_strided(x.shape, x.stride(), x.storage_offset()) for x in (q, k, v))
    norms = norms and tuple(norm._replace(weight_D=norm.weight_D.to(wide)) for norm in norms)
    pages = pages and (pages[0].to(wide), pages[1].to(wide), *pages[2:])
    return outcome(function, y, (q, k, v, rotation and tuple(x.to(wide) for x in rotation), norms, pages))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("write", [False, True])
def test_equals_float64(name, dtype, write):
    """Each number within one rounding; what must not change, and copies, to the bit."""
    y, found = arguments(name, dtype, write)
    expected = outcome(rotate_and_write_reference, y, found, torch.float64)
    before = y.clone()
    for ours, truth in zip(outcome(rotate_and_write_triton, y, found), expected, strict=True):
        assert ours.dtype == dtype
        bound = torch.finfo(dtype).eps * truth.abs() + 2e-6 * truth.abs().max()
        assert ((ours.double() - truth).abs() <= bound).all()
    if write:
        k = found[1]
        assert k.equal(before.as_strided(k.shape, k.stride(), k.storage_offset())), "keys are only written to pages"
        assert found[5][1].equal(expected[2].to(dtype))


def test_a_row_does_not_depend_on_others():
    y, (q, k, v, (cos, sin), norms, pages) = arguments("norms and rotation", torch.float32, True)
    alone = [x[3:4].clone() for x in (q, k, v)]
    rotate_and_write_triton(q, k, v, (cos, sin), norms, pages)
    written = [x[1, :, 2].clone() for x in pages[:2]]
    rotate_and_write_triton(*alone, (cos[3:4], sin[3:4]), norms, (*pages[:2], *(x[3:4] for x in pages[2:])))
    assert q[3:4].equal(alone[0])
    assert all(x[1, :, 2].equal(kept) for x, kept in zip(pages[:2], written))


def test_keys_and_values_alone():
    """As pages are written without a fast path: there are no queries, and no rows at times."""
    y, (q, k, v, _, _, pages) = arguments("neither", torch.float32, True)
    rotate_and_write_triton(None, k, v, pages=pages)
    assert pages[0][2, :, 1].equal(k[2]) and pages[1][0, :, 3].equal(v[1])
    rotate_and_write_triton(None, k[:0], v[:0], pages=(*pages[:2], *(x[:0] for x in pages[2:])))
