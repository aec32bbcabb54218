"""Scores equal a plain forward of each choice, and have the same bits for any batch, order and number of threads."""

from __future__ import annotations

import copy
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
from engine.models.layers import ZeroCenteredRMSNorm
from engine.models.quantised import quantise_trunk, valued_weights
from evaluation.scoring import tree_forward
from evaluation.scoring.score import Scorer
from evaluation.scoring.tree_forward import TreeForward, split_at_tiles
from kernels.attention.reference import attention_reference
from tests.evaluation.scoring.documents import choice_of, document_of, documents_of, long_documents, model_of
from tests.kernels.units import each_way, run_on

DOCUMENTS = documents_of(14)
MODELS = {family: model_of(family) for family in ("bloom", "llama", "gemma3")}


def scores(model, documents, **settings):
    scorer = Scorer(model, **settings)
    return dict(scorer.score(documents)), scorer.work


def test_each_thread_makes_the_models_device_its_own():
    """A new thread starts with GPU 0, and Triton launches on the thread's GPU."""
    with patch("evaluation.scoring.score.use") as use:
        scores(MODELS["llama"], DOCUMENTS, num_threads=3)
    assert [call.args for call in use.call_args_list] == [(torch.device("cpu"),)] * 3


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def expected(model):
    """The scores of all documents, computed with the default settings."""
    return scores(model, DOCUMENTS)[0]


def plain_scores(model, document):
    """Scores of a document from one float64 forward per choice, with reference attention and without the tree."""
    model64, result = model.double(), []
    for choice in document.choices:
        ids = (*choice.context_ids, *choice.continuation_ids)
        batch = PackedBatch.from_sequences([ids[:-1]])

        def attend(_, q, k, v, options, lengths=batch.lengths):
            return attention_reference(q, k, v, lengths, *options)

        h = model64.norm(model64.run(model64.embed(batch), batch, 0, model64.num_layers, attend))
        logprob = (h @ model64.head_weight.T).log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        result.append(float(logprob[len(choice.context_ids) - 1 :].sum()))
    model.float()
    return result


def test_scores_equal_a_plain_float64_forward(model, expected):
    for index in range(6):
        assert expected[index] == pytest.approx(plain_scores(model, DOCUMENTS[index]), abs=2e-4)


def test_sum_of_thousands_of_nats_is_exact(model):
    """A float32 sum would lose digits, as lm-eval's does: see tests/evaluation/test_parity_lm_eval.py."""
    model, draw = copy.deepcopy(model), random.Random(1)
    with torch.no_grad():
        offset = float(isinstance(model.final_norm, ZeroCenteredRMSNorm))
        # 60 nats a token, or else it would take a thousand tokens
        model.final_norm.weight.add_(offset).mul_(16).sub_(offset)
    ids = tuple(draw.randrange(97) for _ in range(152))
    whole = choice_of(ids[:2], ids[2:])
    single_tokens = [choice_of(ids[:n], ids[n : n + 1]) for n in range(2, len(ids))]
    score, *token_scores = scores(model, [document_of(0, [whole, *single_tokens])])[0][0]
    assert score < -4000
    assert score == pytest.approx(math.fsum(token_scores), rel=1e-12)
    assert score == pytest.approx(plain_scores(model, document_of(0, [whole]))[0], rel=1e-7)


@given(
    batch_tokens=st.sampled_from([7, 100, 512, 8192]),
    num_threads=st.integers(1, 3),
    spare=st.integers(0, 300),
    seed=st.integers(0, 99),
    limit=st.integers(1, len(DOCUMENTS)),
)
@settings(max_examples=12, deadline=None)
@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama", "gemma3"])
def test_scores_are_invariant_to_budgets_order_limit_and_threads(family, batch_tokens, num_threads, spare, seed, limit):
    expected = scores(MODELS[family], DOCUMENTS)[0]
    chosen = random.Random(seed).sample(range(len(DOCUMENTS)), limit)
    documents = [DOCUMENTS[i] for i in chosen]
    longest = max(len(choice.context_ids) for document in documents for choice in document.choices)
    found, work = scores(
        MODELS[family], documents, batch_tokens=batch_tokens, cache_tokens=longest + 8 + spare, num_threads=num_threads
    )
    assert {chosen[i]: lls for i, lls in found.items()} == {i: expected[i] for i in chosen}
    assert work.positions_computed == work.tree_tokens


@each_way
@pytest.mark.parametrize("family", [
    pytest.param("bloom", marks=pytest.mark.slow), "llama", pytest.param("gemma3", marks=pytest.mark.slow),
])  # fmt: skip
def test_scores_are_invariant_to_the_size_of_a_forward(family, unit, monkeypatch):
    sizes, documents, make_batch = [], long_documents(), TreeForward._batch

    def record_size(self, chunks):
        batch = make_batch(self, chunks)
        sizes.append(len(batch.tokens_T))
        return batch

    monkeypatch.setattr(TreeForward, "_batch", record_size)
    with run_on(unit):
        expected = scores(MODELS[family], documents, batch_tokens=512)[0]
        for batch_tokens, largest in ((1024, 1024), (1025, 1056), (8192, 8192), (20_000, 8736)):
            sizes.clear()
            assert scores(MODELS[family], documents, batch_tokens=batch_tokens)[0] == expected
            assert max(sizes) == largest
        for limit in (1, 2):
            found = scores(MODELS[family], documents[:limit], batch_tokens=8192)[0]
            assert found == {i: expected[i] for i in range(limit)}


@pytest.mark.parametrize("codes", [("int8", "model"), ("int4", "int8")])
def test_scores_of_codes_are_invariant_to_budgets_and_near_those_of_their_values(codes):
    model = model_of("llama")
    quantise_trunk(model, model.num_layers, *codes)
    expected = scores(model, DOCUMENTS)[0]
    for batch_tokens, count in ((7, 3), (100, 9), (8192, 14)):
        found = scores(model, DOCUMENTS[:count], batch_tokens=batch_tokens, cache_tokens=700)[0]
        assert found == {i: expected[i] for i in range(count)}
    values = model_of("llama")
    values.load_state_dict({name: weight.read() for name, weight in valued_weights(model).items()})
    for i, lls in scores(values, DOCUMENTS)[0].items():
        torch.testing.assert_close(torch.tensor(expected[i]), torch.tensor(lls), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("inner", "columns"), [(64, 96), (2560, 48), (96, 300)])
def test_pytorch_product_of_128_rows_has_the_bits_of_one_of_8224(inner, columns):
    """Without AMX, the bits of scores depend on this: see evaluation/scoring/tree_forward.py."""
    generator = torch.Generator().manual_seed(0)
    x_TD, W_ND = torch.randn(8224, inner, generator=generator), torch.randn(columns, inner, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        product = linear(x_TD, W_ND)
        for rows in (128, 1056, 4096, 8192):
            assert torch.equal(linear(x_TD[-rows:], W_ND), product[-rows:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", MODELS)
def test_scores_without_a_compiler_are_invariant_to_budgets(family):
    with_compiler = scores(MODELS[family], DOCUMENTS)[0]
    with patch.object(tree_forward, "has_attention_after", return_value=False):
        expected = scores(MODELS[family], DOCUMENTS)[0]
        for batch_tokens, count in ((7, 3), (100, 9), (8192, 14)):
            settings = {"batch_tokens": batch_tokens, "num_threads": 2}
            found = scores(MODELS[family], DOCUMENTS[-count:], **settings)[0]
            assert list(map(found.get, range(count))) == [expected[14 - count + i] for i in range(count)]
    for index, lls in with_compiler.items():
        assert expected[index] == pytest.approx(lls, abs=2e-4)


def test_cache_of_a_leaf_in_several_chunks_is_freed(model, monkeypatch):
    nodes, allocate = [], TreeForward._allocate

    def record_node(self, node):
        nodes.append(node)
        return allocate(self, node)

    monkeypatch.setattr(TreeForward, "_allocate", record_node)
    scores(model, [document_of(0, [choice_of(tuple(range(1, 60)), (3, 4))])], batch_tokens=16)
    assert [len(node.tokens) for node in nodes] == [60]
    assert nodes[0].kv is None


def test_scores_with_one_token_per_forward_have_the_same_bits(model, expected):
    found, work = scores(model, DOCUMENTS[:2], batch_tokens=1)
    assert found == {i: expected[i] for i in range(2)}
    assert work.forwards >= work.positions_computed / 8


def test_equal_options_tie_exactly(expected):
    assert all(lls[0] == lls[-1] for lls in expected.values())


def test_each_distinct_prefix_is_computed_once(model):
    _, work = scores(model, DOCUMENTS)
    sequences = [(*c.context_ids, *c.continuation_ids)[:-1] for d in DOCUMENTS for c in d.choices]
    assert work.positions_computed == len({s[:n] for s in sequences for n in range(1, len(s) + 1)})
    assert work.positions_computed < sum(map(len, sequences)) / 4


def test_cache_stays_within_its_budget(model, expected):
    smallest = max(len(c.context_ids) + len(c.continuation_ids) - 1 for d in DOCUMENTS for c in d.choices)
    for cache_tokens in (smallest, smallest + 100, 10_000):
        found, work = scores(model, DOCUMENTS, cache_tokens=cache_tokens)
        assert work.peak_kept_tokens <= cache_tokens
        assert found == expected
    with pytest.raises(UserError, match="--cache-tokens is 50, a prompt with its choice has .*: raise it to"):
        scores(model, DOCUMENTS, cache_tokens=50)


def test_choice_with_a_probability_below_the_smallest_float():
    model = model_of("bloom")
    with torch.no_grad():
        model.embedding.weight[5] *= -60  # the logit of token 5 is always far below the others
    found, _ = scores(model, [document_of(0, [choice_of((1, 2), (5, 3) * 12), choice_of((1, 2), (3,))])])
    expected = plain_scores(model, document_of(0, [choice_of((1, 2), (5, 3) * 12)]))
    assert expected == pytest.approx(found[0][:1], rel=1e-5)


def test_prompt_longer_than_the_model_is_refused(monkeypatch):
    model = model_of("llama")
    monkeypatch.setattr(model, "max_length", 40)
    with pytest.raises(UserError, match="has .* tokens, the model takes at most 40: give --max-length 40 or less"):
        scores(model, DOCUMENTS)


def test_nan_scores_are_an_error():
    model = model_of("bloom")
    with torch.no_grad():
        model.final_norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="made d.* as .nan.*weights are damaged"):
        scores(model, DOCUMENTS, num_threads=2)


def test_exception_in_a_thread_is_raised_and_stops_the_others(monkeypatch):
    model = model_of("bloom")

    def fail(batch):
        raise RuntimeError("broken")

    monkeypatch.setattr(model, "embed", fail)
    with pytest.raises(RuntimeError, match="broken"):
        scores(model, DOCUMENTS, num_threads=2)


def test_each_forward_uses_one_core(monkeypatch):
    model, num_cores, embed = model_of("bloom"), [], type(model_of("bloom")).embed

    def record_cores(batch):
        num_cores.append(torch.get_num_threads())
        return embed(model, batch)

    monkeypatch.setattr(model, "embed", record_cores)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scores(model, DOCUMENTS, num_threads=2)
        assert set(num_cores) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_closing_the_iterator_restores_torchs_number_of_threads():
    before = torch.get_num_threads()
    stream = Scorer(MODELS["bloom"], batch_tokens=16, num_threads=2).score(DOCUMENTS)
    next(stream)
    stream.close()
    assert torch.get_num_threads() == before


@given(start=st.integers(0, 800), count=st.integers(1, 800))
def test_split_at_tiles_splits_at_multiples_of_256(start, count):
    parts = split_at_tiles(start, start + count)
    assert [p for a, b in parts for p in range(a, b)] == list(range(start, start + count))
    assert all(a // 256 == (b - 1) // 256 for a, b in parts)
