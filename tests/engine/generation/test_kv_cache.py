"""Pages: their accounting under any order of taking, sharing and letting go, and what is in them against a full run."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.batch import PackedBatch
from engine.generation.kv_cache import KVCache, PagePool, page_bytes, pages_for
from engine.models import build_model
from tests.engine.models.tiny import CONFIGS, VOCABULARY, randomise

BUDGET = 12


class Accounting(RuleBasedStateMachine):
    """Owners hold pages; the pool must agree with the count of them at every moment."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(BUDGET)
        self.owners: list[list[int]] = []

    @rule(data=st.data())
    def allocate(self, data):
        n = data.draw(st.integers(0, self.pool.num_free))
        pages = self.pool.allocate(n)
        assert len(set(pages)) == n
        assert not {page for owner in self.owners for page in owner} & set(pages), "a page in use was handed out"
        self.owners.append(pages)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def share(self, data):
        owner = data.draw(st.sampled_from(self.owners))
        count = data.draw(st.integers(0, len(owner)))
        self.pool.share(owner[:count])
        self.owners.append(owner[:count])

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def free(self, data):
        at = data.draw(st.integers(0, len(self.owners) - 1))
        self.pool.free(self.owners.pop(at))

    @rule()
    def more_than_there_is(self):
        with pytest.raises(AssertionError, match=f"{BUDGET + 1} pages wanted"):
            self.pool.allocate(BUDGET + 1)

    @rule(page=st.integers(0, BUDGET - 1))
    def what_nobody_owns(self, page):
        if page in {p for owner in self.owners for p in owner}:
            return
        with pytest.raises(AssertionError, match="free"):
            self.pool.share([page])
        with pytest.raises(AssertionError, match="free already"):
            self.pool.free([page])

    @invariant()
    def no_leak_no_overlap_no_page_too_many(self):
        held = Counter(page for owner in self.owners for page in owner)
        assert all(0 <= page < BUDGET for page in held)
        assert self.pool.num_free == BUDGET - len(held)

    def teardown(self):
        for owner in self.owners:
            self.pool.free(owner)
        assert sorted(self.pool.allocate(BUDGET)) == list(range(BUDGET))


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def model_of(name):
    model = build_model(CONFIGS[name](), seed=0)
    randomise(model)
    return model.eval()


def tables(rows, width=4):
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int32)


def tokens_of(n, seed):
    return torch.randint(VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def rows_of(tokens, positions):
    """A batch of one token a row, each at its own position."""
    n = len(tokens)
    return PackedBatch(torch.tensor(tokens), torch.tensor(positions), torch.arange(n + 1, dtype=torch.int32), (1,) * n)


def run(model, batch, attend=None):
    return model.run(model.embed(batch), batch, 0, model.num_layers, attend)


each_model = pytest.mark.parametrize("name", ["bloom, 6 heads", "llama, grouped heads", "qwen3"])


@each_model
@torch.no_grad()
def test_decode_on_shared_and_copied_pages_equals_full_forward(name):
    """Two prompts, three samples of the first: full pages shared, the half-filled one copied."""
    model = model_of(name)
    prompts = [tokens_of(11, 1), tokens_of(3, 2)]
    answers = [tokens_of(4, seed) for seed in (3, 4, 5, 6)]
    of_prompt = [0, 0, 0, 1]
    cache = KVCache(model, 12, page_size=4)
    batch = PackedBatch.from_sequences(prompts)
    hidden = run(model, batch, cache.prefill(batch, tables([[7, 2, 9], [4]])))
    torch.testing.assert_close(hidden, run(model, batch))
    # The last sample takes the prompt's own half-filled page over.
    cache.copy_pages([9, 9], [1, 5])
    table_SB = tables([[7, 2, 1, 0], [7, 2, 5, 8], [7, 2, 9, 10], [4, 11]])
    cu_groups, shared_R = torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([8, 0], dtype=torch.int32)
    expected = PackedBatch.from_sequences([prompts[p] + answer for p, answer in zip(of_prompt, answers)])
    full_TD = run(model, expected)
    for step in range(4):
        position = [len(prompts[p]) + step for p in of_prompt]
        batch = rows_of([answer[step] for answer in answers], position)
        alone = cache.decode(table_SB, batch.positions_T)
        shared = cache.decode(table_SB, batch.positions_T, cu_groups, shared_R)
        out_SD = run(model, batch, shared)
        assert out_SD.equal(run(model, batch, alone))
        where = torch.tensor(expected.starts) + torch.tensor(position)
        torch.testing.assert_close(out_SD, full_TD[where])


@each_model
@torch.no_grad()
def test_chunked_prompt_beside_decoding_row_equals_full_forward(name):
    model = model_of(name)
    prompt, other = tokens_of(13, 1), tokens_of(9, 2)
    cache = KVCache(model, 8, page_size=4)
    first = PackedBatch.from_sequences([prompt[:6], other[:6]])
    run(model, first, cache.prefill(first, tables([[3, 1], [6, 0]])))
    got = []
    # Each step: some tokens of the prompt, each a row, and the other sequence's next token behind them.
    for step, (start, stop) in enumerate([(6, 9), (9, 10), (10, 13)]):
        rows = stop - start
        batch = rows_of([*prompt[start:stop], other[6 + step]], [*range(start, stop), 6 + step])
        table_SB = tables([[3, 1, 7, 2]] * rows + [[6, 0, 5]])
        cu_groups = torch.tensor([0, rows, rows + 1], dtype=torch.int32)
        shared_R = torch.tensor([start // 4 * 4, 4], dtype=torch.int32)
        got.append(run(model, batch, cache.decode(table_SB, batch.positions_T, cu_groups, shared_R)))
    full_TD = run(model, PackedBatch.from_sequences([prompt, other]))
    torch.testing.assert_close(torch.cat([x[:-1] for x in got]), full_TD[6:13])
    torch.testing.assert_close(torch.stack([x[-1] for x in got]), full_TD[13 + 6 : 13 + 9])


def test_page_bytes_equal_the_cache_size():
    model = model_of("llama, grouped heads").to(torch.bfloat16)
    cache = KVCache(model, 7, page_size=16)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in (cache.k_LPGNK, cache.v_LPGNK)}
    assert sum(storages.values()) == 7 * page_bytes(model, torch.bfloat16, 16)
    assert [pages_for(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
