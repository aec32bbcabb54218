"""attention_decode against its float64 reference: as exact as plain PyTorch, and each row independent of the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.attention_decode import attention_decode, attention_decode_reference, cpu, empty_pages, write_pages
from kernels.attention_decode.eager import attention_decode_eager
from kernels.common import native

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C++ compiler: the eager code runs instead")
each_backend = pytest.mark.parametrize(
    "function", [pytest.param(attention_decode, marks=needs_compiler), attention_decode_eager], ids=["C++", "eager"]
)


@dataclass(frozen=True)
class Case:
    """The arguments of one call."""

    q_SHK: torch.Tensor
    k_PGNK: torch.Tensor
    v_PGNK: torch.Tensor
    table_SB: torch.Tensor
    length_S: torch.Tensor
    slopes_H: torch.Tensor | None
    cu_groups: torch.Tensor
    shared_R: torch.Tensor
    window: int | None = None

    def run(self, function=attention_decode, shared=False):
        groups = (self.cu_groups, self.shared_R) if shared else ()
        plain = (self.q_SHK, self.k_PGNK, self.v_PGNK, self.table_SB, self.length_S, self.slopes_H)
        return function(*plain, None, self.window, *groups)

    def open_ended(self):
        """Let the last group end after the last row."""
        return replace(self, cu_groups=torch.cat([self.cu_groups[:-1], self.cu_groups[-1:] + 100]))

    def rows(self, chosen):
        return replace(self, q_SHK=self.q_SHK[chosen], table_SB=self.table_SB[chosen], length_S=self.length_S[chosen])

    def to(self, dtype):
        return replace(self, **{name: getattr(self, name).to(dtype) for name in ("q_SHK", "k_PGNK", "v_PGNK")})


def build(groups, page_size, head_size, kv_heads, per_kv, dtype, alibi, plain_layout, large, seed, window=None):
    """Build a case from groups of (pages shared, [positions after them, per row])."""
    generator = torch.Generator().manual_seed(seed)
    heads = kv_heads * per_kv
    lengths, tables, bounds, shared, used = [], [], [0], [], 0
    for pages, rest in groups:
        rest = [n if pages else max(n, 1) for n in rest]
        common = list(range(used, used + pages))
        used += pages
        for n in rest:
            own = -(-n // page_size)
            lengths.append(pages * page_size + n)
            tables.append(common + list(range(used, used + own)))
            used += own
        bounds.append(len(lengths))
        shared.append(pages * page_size)
    page_order = torch.randperm(used, generator=generator)
    width = max(map(len, tables), default=1)
    # Table entries after a row's pages are invalid, and pages hold NaN after its last position.
    rows = [page_order[table].tolist() + [10**6] * (width - len(table)) for table in tables]
    table_SB = torch.tensor(rows, dtype=torch.int32).reshape(len(rows), width)
    k, v = empty_pages(used, kv_heads, page_size, head_size, dtype, "cpu")
    if plain_layout:
        k, v = k.contiguous(), v.contiguous()
    k.fill_(torch.nan)
    v.fill_(torch.nan)
    for table, length in zip(rows, lengths):
        for j in range(0, length, page_size):
            n = min(page_size, length - j)
            for x in (k, v):
                x[table[j // page_size], :, :n] = torch.randn(kv_heads, n, head_size, generator=generator).to(dtype)
    # Strided as BLOOM's queries are: one of three in a larger tensor.
    q = torch.randn(len(rows), heads, 3, head_size, generator=generator).to(dtype)[:, :, 1] * (300 if large else 1)
    slopes = torch.rand(heads, generator=generator) if alibi else None
    counts = (torch.tensor(x, dtype=torch.int32) for x in (lengths, bounds, shared))
    return Case(q, k, v, table_SB, *(next(counts), slopes, *counts), window)


def plain_pytorch(q_SHK, k_PGNK, v_PGNK, table_SB, length_S, slopes_H, scale=None, window=None):
    """Compute as one would without a kernel: gather, product, bias, softmax, product, in the dtype of the inputs."""
    out = torch.empty_like(q_SHK)
    per_kv = q_SHK.shape[1] // k_PGNK.shape[1]
    for s, n in enumerate(length_S.tolist()):
        pages = table_SB[s, : -(-n // k_PGNK.shape[2])].long()
        k, v = (x[pages].transpose(0, 1).flatten(1, 2)[:, :n].repeat_interleave(per_kv, 0) for x in (k_PGNK, v_PGNK))
        scores = (k @ q_SHK[s, :, :, None])[..., 0] * q_SHK.shape[2] ** -0.5
        if slopes_H is not None:
            scores = scores + (slopes_H[:, None] * torch.arange(n)).to(scores.dtype)
        if window is not None:
            scores[:, : max(0, n - window)] = -torch.inf
        out[s] = (scores.softmax(-1)[:, None] @ v)[:, 0]
    return out


cases = st.builds(
    build,
    groups=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 70), min_size=1, max_size=4)), min_size=1, max_size=3
    ),
    page_size=st.sampled_from([1, 7, 16, 32, 64]),
    head_size=st.sampled_from([1, 5, 16, 64, 80, 96]),
    kv_heads=st.integers(1, 3),
    per_kv=st.sampled_from([1, 3, 4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    alibi=st.booleans(),
    plain_layout=st.booleans(),
    large=st.booleans(),
    seed=st.integers(0, 1000),
    window=st.sampled_from([None, None, 1, 30, 100]),
)
LONG = build([(0, [4096, 1, 1]), (9, [0, 700, 64, 63])], 64, 64, 2, 2, torch.float32, True, False, False, 0)
WINDOW = replace(LONG, window=600)
MANY_ROWS = build([(2, list(range(40)))], 16, 32, 1, 9, torch.float32, True, False, False, 1)


@each_backend
@settings(deadline=None, max_examples=40)
@given(case=cases)
@example(case=LONG)
@example(case=LONG.to(torch.bfloat16))
@example(case=WINDOW)
def test_each_case_is_nearly_as_exact_as_plain_pytorch(function, case):
    """Allows twice plain's error, which may be small by chance. The next test compares many cases together."""
    truth = case.to(torch.float64).run(attention_decode_reference)
    assert truth.isfinite().all()
    out = case.run(function)
    assert out.dtype == case.q_SHK.dtype
    assert out.shape == truth.shape
    q, k, v = (x.nan_to_num().abs().max() for x in (case.q_SHK, case.k_PGNK, case.v_PGNK))
    rounding = 2**-23 * (1 + q * k) * v + torch.finfo(out.dtype).eps / 2 * truth.abs().max()
    error, plain = ((x.double() - truth).abs().max() for x in (out, case.run(plain_pytorch)))
    assert error <= 2 * plain + rounding


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_error_over_many_cases_is_that_of_plain_pytorch(function, dtype, alibi, large):
    """Root mean square error over 20 cases with lengths up to 600; orders of summation differ by a few percent."""
    squares = torch.zeros(2, dtype=torch.float64)
    for seed in range(20):
        case = build([(2, [1, 40, 5]), (0, [600, 30 * seed])], 64, 64, 2, 2, dtype, alibi, False, large, seed)
        truth = case.to(torch.float64).run(attention_decode_reference)
        for i, x in enumerate((case.run(function), case.run(plain_pytorch))):
            squares[i] += (x.double() - truth).square().sum()
    ours, plain = squares.sqrt().tolist()
    assert ours <= 1.1 * plain


@needs_compiler
@settings(deadline=None, max_examples=40)
@given(case=cases, data=st.data())
@example(case=LONG, data=None)
@example(case=MANY_ROWS, data=None)
@example(case=WINDOW, data=None)
def test_decode_is_batch_invariant(case, data):
    together = case.run()
    assert together.equal(case.run(shared=True))
    assert together.equal(case.open_ended().run(shared=True))
    order = torch.arange(len(together)).flip(0)
    assert together[order].equal(case.rows(order).run())
    row = data.draw(st.integers(0, len(together) - 1)) if data else 0
    assert together[row : row + 1].equal(case.rows(slice(row, row + 1)).run())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if threads != 3 else 2)
        assert together.equal(case.run(shared=True))
    finally:
        torch.set_num_threads(threads)


@needs_compiler
def test_shared_positions_are_read_only_from_the_first_row():
    """The other rows' table entries for shared positions may be invalid."""
    case = LONG
    first = case.cu_groups[1]
    case.table_SB[first + 1 :, :9], kept = 10**6, case.table_SB[first + 1 :, :9].clone()
    try:
        out = case.run(shared=True)
    finally:
        case.table_SB[first + 1 :, :9] = kept
    assert out.equal(case.run())


def test_empty_batch():
    k, v = empty_pages(2, 1, 4, 8, torch.float32, "cpu")
    nothing = torch.empty(0, dtype=torch.int32)
    assert attention_decode(torch.empty(0, 2, 8), k, v, nothing.reshape(0, 3), nothing).shape == (0, 2, 8)


def test_scale_argument():
    case = LONG
    doubled = replace(case, q_SHK=case.q_SHK * 2)
    scaled = attention_decode(
        case.q_SHK, case.k_PGNK, case.v_PGNK, case.table_SB, case.length_S, case.slopes_H, 2 * 64**-0.5
    )
    torch.testing.assert_close(scaled, doubled.run())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("plain_layout", [False, True])
def test_write_pages(dtype, plain_layout):
    generator = torch.Generator().manual_seed(0)
    k, v = empty_pages(5, 2, 3, 4, dtype, "cpu", layers=(2,))
    if plain_layout:
        k, v = k.contiguous(), v.contiguous()
    k.zero_()
    v.zero_()
    expected = [k.clone(), v.clone()]
    assert k.shape == v.shape == (2, 5, 2, 3, 4)
    new = torch.randn(3, 2, 3, 4, generator=generator).to(dtype)  # [T, G, (q, k, v), K]
    page_T, slot_T = torch.tensor([4, 0, 4]), torch.tensor([0, 2, 1])
    write_pages(new[:, :, 1], new[:, :, 2], k[1], v[1], page_T, slot_T)
    for t, (page, slot) in enumerate(zip(page_T, slot_T)):
        expected[0][1, page, :, slot] = new[t, :, 1]
        expected[1][1, page, :, slot] = new[t, :, 2]
    assert k.equal(expected[0])
    assert v.equal(expected[1])


def test_without_a_compiler_results_are_close(monkeypatch):
    expected = LONG.run(shared=True)
    monkeypatch.setattr(native, "load", lambda name, sources: None)
    cpu.library.cache_clear()
    try:
        assert cpu.library() is None
        torch.testing.assert_close(LONG.run(shared=True), expected)
    finally:
        monkeypatch.undo()
        cpu.library.cache_clear()
