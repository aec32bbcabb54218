"""attention_decode in Triton against float64: chunks, groups, odd page and head sizes, grouped heads, ALiBi."""

import pytest
import torch
from triton.runtime.interpreter import interpreter_builder

from kernels.attention_decode import attention_decode_reference, fused
from kernels.attention_decode.fused import attention_decode_triton, prepare_triton
from tests.kernels.test_attention_decode import build

# Per group (pages shared, [positions after them, per row]); page size, head size, key/value heads, queries per
# key/value head, ALiBi. A program takes 256 positions and 8 rows that share.
CASES = {
    "alibi": ([(2, [1, 40, 5, 0, 9, 9, 9, 9, 9, 3]), (0, [300])], 16, 16, 2, 1, True, None),
    "grouped heads, odd head size": ([(1, [0, 0]), (3, [270, 1]), (0, [1])], 128, 5, 1, 3, False, None),
    "both, odd pages": ([(0, [31]), (45, [1, 7])], 7, 24, 3, 2, True, None),
    "a window": ([(20, [1, 40, 120, 0]), (0, [300])], 16, 16, 1, 2, True, 100),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "shared"),
    [
        pytest.param(torch.float32, False, marks=pytest.mark.slow),
        (torch.float32, True),
        (torch.bfloat16, True),
        pytest.param(torch.bfloat16, False, marks=pytest.mark.slow),
        pytest.param(torch.float16, True, marks=pytest.mark.slow),
    ],
)
def test_equals_float64(name, dtype, shared):
    """Pages hold NaN after a row's last position."""
    groups, page_size, head_size, kv_heads, per_kv, alibi, window = CASES[name]
    case = build(groups, page_size, head_size, kv_heads, per_kv, dtype, alibi, False, False, 1, window)
    truth = case.to(torch.float64).run(attention_decode_reference)
    if shared:  # shared positions are read only from the first row of each tile
        for first, last, positions in zip(case.cu_groups, case.cu_groups[1:], case.shared_R):
            tile = max(16, 1 << (8 * per_kv - 1).bit_length()) // per_kv
            of_others = torch.arange(first, last)[torch.arange(last - first) % tile > 0]
            case.table_SB[of_others, : positions // page_size] = 0
    out = case.run(attention_decode_triton, shared=shared)
    assert out.equal(case.open_ended().run(attention_decode_triton, shared=shared))
    assert out.dtype == dtype
    assert (out.double() - truth).abs().max() <= 1e-6 + torch.finfo(dtype).eps * truth.abs().max()


LONG = ([(0, [150]), (5, [70, 9])], 16, 16, 2, 1, torch.float32, True, False, False, 3)


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK", 64)


@pytest.mark.parametrize("shared", [False, True])
def test_any_program_of_a_row_may_be_the_last(shared, short_chunks, monkeypatch):
    """The interpreter runs programs in order. In the opposite order, other ones merge: the bits are the same."""
    case = build(*LONG)
    expected = case.run(attention_decode_triton, shared=shared)
    in_order = interpreter_builder.set_grid_idx
    monkeypatch.setattr(
        interpreter_builder,
        "set_grid_idx",
        lambda *place: in_order(*(size - 1 - i for size, i in zip(interpreter_builder.grid_dim, place))),
    )
    assert case.run(attention_decode_triton, shared=shared).equal(expected)
    truth = case.to(torch.float64).run(attention_decode_reference)
    torch.testing.assert_close(expected.double(), truth, atol=2e-6, rtol=2e-6)


def test_a_row_does_not_depend_on_others(short_chunks):
    """Alone, with others, and in groups that share nothing: the same bits."""
    case = build(*LONG)
    together = case.run(attention_decode_triton)
    for row in range(3):
        assert case.rows(slice(row, row + 1)).run(attention_decode_triton).equal(together[row : row + 1])
    case.shared_R.zero_()
    assert case.run(attention_decode_triton, shared=True).equal(together)


def test_what_is_prepared_serves_one_layer_after_the_other(short_chunks):
    case = build(*LONG)
    groups = (case.cu_groups, case.shared_R)
    prepared = prepare_triton(3, 2, case.q_SHK.device, case.cu_groups)
    assert prepared.group_of_S.tolist() == [0, 1, 1]
    expected = case.run(attention_decode_triton, shared=True)
    where = (case.q_SHK, case.k_PGNK, case.v_PGNK, case.table_SB, case.length_S, case.slopes_H, None, None)
    for _ in range(2):
        assert attention_decode_triton(*where, *groups, prepared).equal(expected)
        assert not prepared.tickets.any()


def test_empty_batch():
    case = build([(0, [3])], 16, 16, 1, 1, torch.float32, False, False, False, 0)
    assert case.rows(slice(0, 0)).run(attention_decode_triton).shape == (0, 1, 16)
