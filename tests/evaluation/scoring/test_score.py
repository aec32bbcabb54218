"""Scores: equal to a plain forward of each choice, and the same bits whatever they are computed beside."""

from __future__ import annotations

import math
import random
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from engine.base.errors import UserError
from engine.batch import PackedBatch
from evaluation.scoring import branches
from evaluation.scoring.branches import tiles
from evaluation.scoring.score import Scorer
from kernels.attention.reference import attention_reference
from tests.evaluation.scoring.scorable import choice_of, document_of, documents_of, long_documents, model_of
from tests.kernels.units import each_way, run_on

DOCUMENTS = documents_of(14)
MODELS = {family: model_of(family) for family in ("bloom", "llama")}


def scores(model, documents, **settings):
    scorer = Scorer(model, **settings)
    return dict(scorer.score(documents)), scorer.work


@pytest.fixture(scope="module", params=["bloom", "llama"])
def model(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def expected(model):
    """Each document's scores, computed in one go."""
    return scores(model, DOCUMENTS)[0]


def plain(model, document):
    """Every choice alone, in float64, without the tree: attention by its specification."""
    wide, result = model.double(), []
    for choice in document.choices:
        ids = (*choice.context_ids, *choice.continuation_ids)
        batch = PackedBatch.from_sequences([ids[:-1]])

        def attend(_, q, k, v, slopes, lengths=batch.lengths):
            return attention_reference(q, k, v, lengths, slopes)

        h = wide.norm(wide.run(wide.embed(batch), batch, 0, wide.num_layers, attend))
        logprob = (h @ wide.head_weight.T).log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        result.append(float(logprob[len(choice.context_ids) - 1 :].sum()))
    model.float()
    return result


def test_scores_are_those_of_a_plain_float64_forward(model, expected):
    for place in range(6):
        assert expected[place] == pytest.approx(plain(model, DOCUMENTS[place]), abs=2e-4)


def test_a_log_likelihood_of_thousands_of_nats_loses_nothing_in_its_sum(model):
    """A sum in float32 would: see tests/evaluation/test_parity_lm_eval.py."""
    draw = random.Random(1)
    ids = tuple(draw.randrange(97) for _ in range(1002))
    whole = choice_of(ids[:2], ids[2:])
    tokens = [choice_of(ids[:n], ids[n : n + 1]) for n in range(2, len(ids))]
    found, *of_tokens = scores(model, [document_of(0, [whole, *tokens])])[0][0]
    assert found < -4000
    assert found == pytest.approx(math.fsum(of_tokens), rel=1e-12)
    assert found == pytest.approx(plain(model, document_of(0, [whole]))[0], rel=1e-7)


@given(
    batch_tokens=st.sampled_from([7, 100, 512, 8192]),
    num_threads=st.integers(1, 3),
    spare=st.integers(0, 300),
    seed=st.integers(0, 99),
    limit=st.integers(1, len(DOCUMENTS)),
)
@settings(max_examples=12, deadline=None)
@pytest.mark.parametrize("family", MODELS)
def test_the_same_bits_for_any_budget_order_limit_and_number_of_threads(
    family, batch_tokens, num_threads, spare, seed, limit
):
    expected = scores(MODELS[family], DOCUMENTS)[0]
    chosen = random.Random(seed).sample(range(len(DOCUMENTS)), limit)
    documents = [DOCUMENTS[i] for i in chosen]
    longest = max(len(choice.context_ids) for document in documents for choice in document.choices)
    found, work = scores(
        MODELS[family], documents, batch_tokens=batch_tokens, cache_tokens=longest + 8 + spare, num_threads=num_threads
    )
    assert {chosen[place]: lls for place, lls in found.items()} == {i: expected[i] for i in chosen}
    assert work.positions_computed == work.tree_tokens


@each_way
@pytest.mark.parametrize("family", MODELS)
def test_the_same_bits_however_large_a_forward_is(family, unit, monkeypatch):
    sizes, documents, make_batch = [], long_documents(), branches.Branches._batch

    def note_size(self, pieces):
        batch = make_batch(self, pieces)
        sizes.append(len(batch.tokens_T))
        return batch

    monkeypatch.setattr(branches.Branches, "_batch", note_size)
    with run_on(unit):
        expected = scores(MODELS[family], documents, batch_tokens=512)[0]
        for batch_tokens, largest in ((1024, 1024), (1025, 1056), (8192, 8192), (20_000, 8736)):
            sizes.clear()
            assert scores(MODELS[family], documents, batch_tokens=batch_tokens)[0] == expected
            assert max(sizes) == largest
        for limit in (1, 2):
            found = scores(MODELS[family], documents[:limit], batch_tokens=8192)[0]
            assert found == {i: expected[i] for i in range(limit)}


@pytest.mark.parametrize(("inner", "columns"), [(64, 96), (2560, 48), (96, 300)])
def test_a_row_of_pytorchs_product_has_the_same_bits_in_128_rows_and_in_8224(inner, columns):
    """What scores rest on where there is no matrix unit, see evaluation/scoring/branches.py."""
    generator = torch.Generator().manual_seed(0)
    x_TD, W_ND = torch.randn(8224, inner, generator=generator), torch.randn(columns, inner, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        together = linear(x_TD, W_ND)
        for rows in (128, 1056, 4096, 8192):
            assert torch.equal(linear(x_TD[-rows:], W_ND), together[-rows:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", MODELS)
def test_without_a_compiler_the_same_bits_for_any_budget_too(family):
    by_kernel = scores(MODELS[family], DOCUMENTS)[0]
    with patch.object(branches, "has_attention_after", return_value=False):
        expected = scores(MODELS[family], DOCUMENTS)[0]
        for batch_tokens, count in ((7, 3), (100, 9), (8192, 14)):
            settings = {"batch_tokens": batch_tokens, "num_threads": 2}
            found = scores(MODELS[family], DOCUMENTS[-count:], **settings)[0]
            assert list(map(found.get, range(count))) == [expected[14 - count + i] for i in range(count)]
    for place, lls in by_kernel.items():
        assert expected[place] == pytest.approx(lls, abs=2e-4)


def test_a_leaf_longer_than_a_forward_is_forgotten_when_it_is_done(model, monkeypatch):
    made = []
    monkeypatch.setattr(branches.Branches, "_room", lambda self, node, room=branches.Branches._room: (
        made.append(node), room(self, node))[1])  # fmt: skip
    scores(model, [document_of(0, [choice_of(tuple(range(1, 60)), (3, 4))])], batch_tokens=16)
    assert [len(node.tokens) for node in made] == [60]
    assert made[0].keys is None


def test_one_token_a_forward_gives_the_same_bits_too(model, expected):
    found, work = scores(model, DOCUMENTS[:2], batch_tokens=1)
    assert found == {i: expected[i] for i in range(2)}
    assert work.forwards >= work.positions_computed / 8  # only leaves of one token share a forward


def test_equal_options_tie_exactly(expected):
    assert all(lls[0] == lls[-1] for lls in expected.values())


def test_each_position_of_the_tree_is_computed_once(model):
    _, work = scores(model, DOCUMENTS)
    sequences = [(*c.context_ids, *c.continuation_ids)[:-1] for d in DOCUMENTS for c in d.choices]
    assert work.positions_computed == len({s[:n] for s in sequences for n in range(1, len(s) + 1)})
    assert work.positions_computed < sum(map(len, sequences)) / 4


def test_the_cache_keeps_to_its_budget(model, expected):
    least = max(len(c.context_ids) + len(c.continuation_ids) - 1 for d in DOCUMENTS for c in d.choices)
    for cache_tokens in (least, least + 100, 10_000):
        found, work = scores(model, DOCUMENTS, cache_tokens=cache_tokens)
        assert work.peak_kept_tokens <= cache_tokens
        assert found == expected
    with pytest.raises(UserError, match="--cache-tokens is 50, a prompt with its choice has .*: raise it to"):
        scores(model, DOCUMENTS, cache_tokens=50)


def test_a_choice_far_below_what_exp_can_say():
    model = model_of("bloom")
    with torch.no_grad():
        model.embedding.weight[5] *= -60  # its logit is far below the others wherever it is asked for
    found, _ = scores(model, [document_of(0, [choice_of((1, 2), (5, 3) * 12), choice_of((1, 2), (3,))])])
    assert plain(model, document_of(0, [choice_of((1, 2), (5, 3) * 12)])) == pytest.approx(found[0][:1], rel=1e-5)


def test_a_prompt_longer_than_the_model_serves(monkeypatch):
    model = model_of("llama")
    monkeypatch.setattr(model, "max_length", 40)
    with pytest.raises(UserError, match="has .* tokens, the model serves 40"):
        scores(model, DOCUMENTS)


def test_damaged_weights_are_named_and_not_ranked():
    model = model_of("bloom")
    with torch.no_grad():
        model.final_norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="made d.* as .nan.*weights are damaged"):
        scores(model, DOCUMENTS, num_threads=2)


def test_a_failure_in_a_thread_is_raised_and_stops_the_others(monkeypatch):
    model = model_of("bloom")

    def fail(batch):
        raise RuntimeError("broken")

    monkeypatch.setattr(model, "embed", fail)
    with pytest.raises(RuntimeError, match="broken"):
        scores(model, DOCUMENTS, num_threads=2)


def test_a_forward_runs_on_one_core_whatever_the_process_has(monkeypatch):
    model, seen, embed = model_of("bloom"), [], type(model_of("bloom")).embed

    def look(batch):
        seen.append(torch.get_num_threads())
        return embed(model, batch)

    monkeypatch.setattr(model, "embed", look)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scores(model, DOCUMENTS, num_threads=2)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_reader_that_stops_early_leaves_no_thread_and_the_threads_it_found():
    before = torch.get_num_threads()
    stream = Scorer(MODELS["bloom"], batch_tokens=16, num_threads=2).score(DOCUMENTS)
    next(stream)
    stream.close()
    assert torch.get_num_threads() == before


@given(start=st.integers(0, 800), count=st.integers(1, 800))
def test_tiles_begin_at_multiples_of_256(start, count):
    cut = tiles(start, start + count)
    assert [p for a, b in cut for p in range(a, b)] == list(range(start, start + count))
    assert all(a // 256 == (b - 1) // 256 for a, b in cut)
