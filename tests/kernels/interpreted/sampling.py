"""Sampling in Triton against its definition and the other backends: ties, odd vocabularies, broken rows, launches."""

import random

import pytest
import torch

from kernels.sampling import fused
from kernels.sampling.eager import sample_eager
from kernels.sampling.fused import sample_triton
from tests.kernels.launches import Launches
from tests.kernels.sampling_problems import logits_of, possible_tokens


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Several groups and tiles even for a small vocabulary."""
    monkeypatch.setattr(fused, "GROUP", 16)
    monkeypatch.setattr(fused, "TILE", 64)
    monkeypatch.setattr("kernels.sampling.truncate.TILE", 256)


def uniforms(rows, seed=0):
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(16))
def test_the_token_is_that_of_the_definition(seed):
    pick = random.Random(seed).choice
    vocabulary, spread, grid = pick([1, 2, 17, 290, 300]), pick([0.0, 0.3, 2.0, 30.0]), pick([0.0, 0.5])
    top_k, top_p, min_p = pick([0, 1, 3, 40, 250, 10**6]), pick([1e-6, 0.5, 0.9, 0.999, 1.0]), pick([0.0, 0.02, 1.0])
    temperature, dtype = pick([0.1, 0.7, 1.0, 10.0]), pick([torch.float32, torch.bfloat16, torch.float16])
    logits_SV = (logits_of(3, vocabulary, spread, grid, seed) + pick([0, 0, -1e4])).to(dtype)
    uniform_S = torch.tensor([0.0, random.Random(seed).random(), 1 - 2**-53], dtype=torch.float64)
    token_S, logprob_S, logsumexp_S = sample_triton(logits_SV, uniform_S, temperature, top_k, top_p, min_p)
    score_SV = logits_SV.float() / temperature
    for score_V, token, uniform in zip(score_SV, token_S.tolist(), uniform_S.tolist()):
        assert possible_tokens(score_V, top_k, top_p, min_p, uniform)[token]
    truth_S = score_SV.double().logsumexp(-1)
    torch.testing.assert_close(logsumexp_S.double(), truth_S, rtol=1e-6, atol=1e-5)
    chosen_S = score_SV.double().gather(1, token_S[:, None])[:, 0]
    rounding = 1e-4 + 1e-7 * truth_S.abs().max().item()
    torch.testing.assert_close(logprob_S.double(), chosen_S - truth_S, rtol=1e-6, atol=rounding)


HOWS = [(1.0,), (0.0,), (0.7, 5, 0.9), (1.3, 0, 0.8, 0.1), (1.0, 0, 1.0, 0.3), (2.0, 12)]


@pytest.mark.parametrize(("how", "penalty"), zip(HOWS, [1.3, 0.6] * 3), ids=str)
def test_penalty_and_masked_eos_as_in_eager(how, penalty):
    """In a layout that is not dense, with a token that came twice, and a row whose EOS is free."""
    logits_SV = logits_of(4, 130, 2.0, 0, 7)[:, ::2]
    history_SN = torch.randint(65, (4, 24), generator=torch.Generator().manual_seed(1))[:, ::2]
    history_SN[:, 5] = history_SN[:, 4]
    history_SN[:, 7] = -1
    history_SN[3] = -1
    how = (*how, *(0, 1.0, 0.0)[len(how) - 1 :], penalty, history_SN, torch.tensor([True, True, False, True]))
    likely = logits_SV[0].argmax().item()
    arguments = (logits_SV, uniforms(4), *how, torch.tensor([likely, 64]))
    for ours, truth in zip(sample_triton(*arguments), sample_eager(*arguments)):
        torch.testing.assert_close(ours, truth, rtol=0, atol=2e-6)


def test_greedy_takes_the_first_of_the_largest():
    logits_SV = torch.zeros(2, 100)
    logits_SV[0, [33, 34, 90]] = 2.0
    logits_SV[1, [15, 16]] = -torch.inf
    assert sample_triton(logits_SV, uniforms(2), 0.0)[0].tolist() == [33, 0]


def test_cumulative_shares_decide():
    """Eight tokens of share 1/8: the uniform names the token, and on a boundary the next one."""
    logits_SV = torch.full((16, 60), -torch.inf)
    possible = [0, 15, 16, 17, 40, 41, 58, 59]
    logits_SV[:, possible] = -3.0
    uniform_S = torch.arange(16, dtype=torch.float64) / 16
    expected = [token for token in possible for _ in range(2)]
    assert sample_triton(logits_SV, uniform_S)[0].tolist() == expected
    assert sample_triton(logits_SV[::4], uniform_S[::4], 1.0, 3)[0].tolist() == expected[::4]  # ties are kept together
    assert sample_triton(logits_SV[::4], uniform_S[::4], 1.0, 0, 0.3)[0].tolist() == expected[::4]


@pytest.mark.parametrize("how", [(0.0,), (1.0,), (0.7, 5, 0.9)], ids=str)
def test_a_row_without_a_distribution_gives_nan_and_token_0_and_leaves_the_others_alone(how):
    logits_SV, uniform_S = logits_of(7, 70, 1.0, 0, 0), uniforms(7)
    before = sample_triton(logits_SV[::6], uniform_S[::6], *how)
    logits_SV[1, 7] = torch.nan
    logits_SV[2] = torch.nan
    logits_SV[3, -1] = torch.inf
    logits_SV[4] = -torch.inf
    logits_SV[5] = -torch.inf
    logits_SV[5, 9] = 1.0
    masked_S, eos_E = torch.tensor([False] * 5 + [True, False]), torch.tensor([9])  # row 5: its only token is barred
    arguments = (*how, *(0, 1.0, 0.0)[len(how) - 1 :], 1.0, None, masked_S, eos_E)
    token_S, logprob_S, logsumexp_S = sample_triton(logits_SV, uniform_S, *arguments)
    broken_S = torch.tensor([False, True, True, True, True, True, False])
    assert logprob_S.isnan().tolist() == broken_S.tolist()
    assert not token_S[broken_S].any()
    for now, was in zip((token_S, logprob_S, logsumexp_S), before):
        assert torch.equal(now[~broken_S], was)


def test_a_masked_eos_that_is_nan_breaks_its_row():
    logits_SV = torch.tensor([[0.0, torch.nan, 1.0]])
    token_S, logprob_S, _ = sample_triton(
        logits_SV, uniforms(1), mask_eos_S=torch.tensor([True]), eos_ids_E=torch.tensor([1])
    )
    assert token_S.tolist() == [0] and logprob_S.isnan().all()


@pytest.mark.parametrize("how", [(1.0,), (0.7, 5, 0.9)], ids=str)
def test_no_bit_of_a_row_depends_on_its_company(how):
    logits_SV, uniform_S = logits_of(2, 100, 2.0, 0, 3), uniforms(2)
    together = sample_triton(logits_SV, uniform_S, *how)
    for s in range(2):
        alone = sample_triton(logits_SV[s : s + 1], uniform_S[s : s + 1], *how)
        assert all(x[s : s + 1].equal(y) for x, y in zip(together, alone))


@pytest.mark.parametrize(("how", "launches"), [
    ((1.0,), ["_summarize", "_choose"]),
    ((0.0,), ["_summarize", "_choose"]),
    ((0.7, 5, 0.9, 0.1), ["_summarize", "_truncate", "_choose"]),
    ((0.7, 0, 1.0, 0.0, 1.2), ["zeros", "_mark", "_summarize", "_choose"]),
], ids=str)  # fmt: skip
def test_launches(monkeypatch, how, launches):
    """No other operation of torch, so no copy and no wait for the device."""
    logits_SV, uniform_S, history_SN = logits_of(2, 100, 2.0, 0, 3), uniforms(2), torch.zeros(2, 3, dtype=torch.int64)
    history = (history_SN,) if len(how) == 5 else ()
    with Launches(monkeypatch) as seen:
        sample_triton(logits_SV, uniform_S, *how, *history)
    assert dict(seen.names) == dict.fromkeys(launches, 1)


def test_no_rows_give_no_tokens():
    token_S, logprob_S, logsumexp_S = sample_triton(torch.empty(0, 5), torch.empty(0, dtype=torch.float64))
    assert token_S.shape == logprob_S.shape == logsumexp_S.shape == (0,)
