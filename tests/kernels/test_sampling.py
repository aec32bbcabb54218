"""Sampling against its float64 definition, against transformers' processors, and each row against itself alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    MinLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kernels.sampling import cpu, sample_rows
from kernels.sampling.eager import sample_eager
from tests.kernels.sampling_problems import HAIR, logits_of, possible_tokens

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C++ compiler here: the eager code runs instead")
each_backend = pytest.mark.parametrize(
    "sample", [pytest.param(sample_rows, marks=needs_compiler), sample_eager], ids=["C++", "eager"]
)


@each_backend
@settings(deadline=None, max_examples=60)
@given(
    vocabulary=st.sampled_from([1, 2, 17, 300, 700]),
    spread=st.sampled_from([0.0, 0.3, 2.0, 30.0]),
    grid=st.sampled_from([0.0, 0.0, 0.5]),
    seed=st.integers(0, 1000),
    top_k=st.sampled_from([0, 1, 3, 40, 600, 10**6]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 10.0]),
    uniform=st.one_of(st.just(0.0), st.just(1 - 2**-53), st.floats(0, 1, exclude_max=True)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_token_is_that_of_the_definition(
    sample, vocabulary, spread, grid, seed, top_k, top_p, min_p, temperature, uniform, dtype
):
    logits_SV = logits_of(2, vocabulary, spread, grid, seed).to(dtype)
    uniform_S = torch.full((2,), uniform, dtype=torch.float64)
    token_S, logprob_S, logsumexp_S = sample(logits_SV, uniform_S, temperature, top_k, top_p, min_p)
    score_SV = logits_SV.float() / temperature
    for score_V, token in zip(score_SV, token_S.tolist()):
        assert possible_tokens(score_V, top_k, top_p, min_p, uniform)[token]
    truth_S = score_SV.double().logsumexp(-1)
    torch.testing.assert_close(logsumexp_S.double(), truth_S, rtol=1e-6, atol=1e-5)
    chosen_S = score_SV.double().gather(1, token_S[:, None])[:, 0]
    torch.testing.assert_close(logprob_S.double(), chosen_S - truth_S, rtol=1e-6, atol=1e-4)


@each_backend
@pytest.mark.parametrize(
    "how", [(0, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.9, 0.0), (2000, 0.95, 0.0), (0, 1.0, 0.05)], ids=str
)
def test_a_vocabulary_of_blooms_size(sample, how):
    """Sharp rows, whose nucleus is a few tokens, beside flat ones, whose nucleus is most of the vocabulary."""
    logits_SV = torch.cat([logits_of(2, 250_880, spread, 0, 3) for spread in (0.5, 4.0)])
    uniform_S = torch.tensor([0.1, 0.9, 0.3, 0.999], dtype=torch.float64)
    token_S, _, _ = sample(logits_SV, uniform_S, 1.0, *how)
    top_k, top_p, min_p = how
    for score_V, token, uniform in zip(logits_SV.double(), token_S.tolist(), uniform_S.tolist()):
        sorted_V = score_V.sort(descending=True)
        share_V = sorted_V.values.softmax(-1)
        share_V[top_k or len(share_V) :] = 0
        share_V /= share_V.sum()
        before_V = share_V.cumsum(-1) - share_V
        share_V[(before_V >= top_p) | (share_V < min_p * share_V[0])] = 0
        in_order_V = torch.zeros_like(share_V).scatter(0, sorted_V.indices, share_V / share_V.sum())
        until = in_order_V.cumsum(-1)[token]
        assert in_order_V[token] > 0
        assert until - in_order_V[token] - HAIR <= uniform <= until + HAIR


HOWS = [(1.0, 0, 1.0, 0.0), (0.7, 5, 0.9, 0.0), (1.3, 0, 0.8, 0.1), (1.0, 0, 1.0, 0.3), (2.0, 12, 1.0, 0.0)]


@each_backend
@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.6])
def test_shares_are_those_of_transformers_processors(sample, how, penalty):
    """Penalty, minimum length, temperature, top-k, top-p, min-p, in that order; the history is prompt and response."""
    temperature, top_k, top_p, min_p = how
    logits_SV = logits_of(4, 60, 2.0, 0, 7)
    history_SN = torch.randint(60, (4, 12), generator=torch.Generator().manual_seed(1))
    history_SN[:, 5] = history_SN[:, 4]  # a token that came twice is penalised once
    eos = torch.tensor([3, 59])
    processors = [
        RepetitionPenaltyLogitsProcessor(penalty),
        MinLengthLogitsProcessor(20, eos.tolist(), "cpu"),
        TemperatureLogitsWarper(temperature),
        *([TopKLogitsWarper(top_k)] if top_k else []),
        *([TopPLogitsWarper(top_p)] if top_p < 1 else []),
        *([MinPLogitsWarper(min_p)] if min_p else []),
    ]
    score_SV = logits_SV
    for processor in processors:
        score_SV = processor(history_SN, score_SV)
    share_SV = score_SV.double().softmax(-1)
    assert not share_SV[:, eos].any()
    padded_SN = torch.cat([history_SN, torch.full((4, 3), -1)], 1)[:, torch.randperm(15)]
    draws = 2000
    uniform_S = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws).repeat(4)
    token_S, logprob_S, _ = sample(
        *(logits_SV.repeat_interleave(draws, 0), uniform_S, *how, penalty),
        *(padded_SN.repeat_interleave(draws, 0), torch.ones(4 * draws, dtype=torch.bool), eos),
    )
    for s in range(4):
        count_V = token_S[s * draws : (s + 1) * draws].bincount(minlength=60)
        assert (count_V - draws * share_SV[s]).abs().max() <= 1.01
    seen_S = (logits_SV / temperature).log_softmax(-1).repeat_interleave(draws, 0).gather(1, token_S[:, None])[:, 0]
    torch.testing.assert_close(logprob_S, seen_S, rtol=0, atol=1e-5)


@each_backend
def test_greedy_takes_the_first_of_the_largest_after_penalty_and_bar(sample):
    logits_SV = torch.tensor([[1.0, 4.0, 3.5, 4.0, -2.0]]).repeat(4, 1)
    uniform_S = torch.zeros(4, dtype=torch.float64)
    history_SN = torch.tensor([[-1, -1], [1, -1], [1, 3], [4, -1]])
    eos_masked_S = torch.tensor([False, False, False, True])
    token_S, logprob_S, logsumexp_S = sample(
        logits_SV, uniform_S, 0.0, 0, 1.0, 0.0, 2.0, history_SN, eos_masked_S, torch.tensor([1])
    )
    assert token_S.tolist() == [1, 3, 2, 3]
    torch.testing.assert_close(logprob_S, logits_SV.log_softmax(-1).gather(1, token_S[:, None])[:, 0])
    torch.testing.assert_close(logsumexp_S, logits_SV.logsumexp(-1))


@each_backend
def test_what_is_impossible_is_never_chosen(sample):
    logits_SV = logits_of(6, 40, 1.0, 0, 0)
    logits_SV[:, ::2] = -torch.inf
    logits_SV[:, 39] = -torch.inf
    uniform_S = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1 - 2**-53], dtype=torch.float64)
    for how in HOWS:
        token_S, logprob_S, _ = sample(logits_SV, uniform_S, *how)
        assert logits_SV.gather(1, token_S[:, None]).isfinite().all()
        assert logprob_S.isfinite().all()


@each_backend
@pytest.mark.parametrize("how", [(0.0,), (1.0,), *HOWS, (1.0, 5, 0.9), (1.0, 0, 1.0, 0.0, 1.2)], ids=str)
@pytest.mark.parametrize("vocabulary", [40, 1024, 3000])
def test_a_row_without_a_distribution_gives_nan_and_token_0_and_leaves_the_others_alone(sample, how, vocabulary):
    logits_SV = logits_of(7, vocabulary, 1.0, 0, 0)
    uniform_S = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1 - 2**-53], dtype=torch.float64)
    history_SN = torch.arange(14).view(7, 2)
    arguments = (*how, *(0, 1.0, 0.0, 1.0)[len(how) - 1 :], history_SN)
    before = sample(logits_SV, uniform_S, *arguments)
    logits_SV[1, 7] = torch.nan
    logits_SV[2] = torch.nan
    logits_SV[3, -1] = torch.inf
    logits_SV[4] = -torch.inf
    broken_S = torch.tensor([False, True, True, True, True, False, False])
    token_S, logprob_S, logsumexp_S = sample(logits_SV, uniform_S, *arguments)
    assert logprob_S.isnan().tolist() == broken_S.tolist()
    assert token_S[broken_S].tolist() == [0, 0, 0, 0]
    for now, was in zip((token_S, logprob_S, logsumexp_S), before):
        assert torch.equal(now[~broken_S], was[~broken_S])


@each_backend
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_only_token_is_barred_gives_nan(sample, temperature):
    logits_SV = torch.tensor([[1.0, -torch.inf], [1.0, 0.0]])
    eos_masked_S, eos = torch.tensor([True, True]), torch.tensor([0])
    arguments = (torch.zeros(2, dtype=torch.float64), temperature, 0, 1.0, 0.0, 1.0, None, eos_masked_S, eos)
    token_S, logprob_S, _ = sample(logits_SV, *arguments)
    assert token_S.tolist() == [0, 1]
    assert logprob_S.isnan().tolist() == [True, False]


@needs_compiler
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), how=st.sampled_from(HOWS), columns=st.sampled_from([1, 2]))
@example(seed=0, how=HOWS[0], columns=1)
def test_no_bit_of_a_row_depends_on_its_company(seed, how, columns):
    logits_SV = logits_of(7, 900 * columns, 2.0, 0, seed)[:, ::columns]  # of stride 2: not dense
    uniform_S = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    together = sample_rows(logits_SV, uniform_S, *how)
    for s in range(7):
        alone = sample_rows(logits_SV[s : s + 1], uniform_S[s : s + 1], *how)
        assert all(x[s : s + 1].equal(y) for x, y in zip(together, alone))


def test_no_rows_give_no_tokens():
    token_S, logprob_S, logsumexp_S = sample_rows(torch.empty(0, 5), torch.empty(0, dtype=torch.float64))
    assert token_S.shape == logprob_S.shape == logsumexp_S.shape == (0,)
