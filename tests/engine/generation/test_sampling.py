"""Sampling against softmax written out in float64: exact shares on a grid of uniforms, chi-square on random ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.generation.sampling import Sampling, sample
from kernels.sampling.eager import HEAD

V = 40
LOGITS_V = 2 * torch.randn(V, generator=torch.Generator().manual_seed(5))
FLAT_V = 0.3 * torch.randn(HEAD + 200, generator=torch.Generator().manual_seed(6))
BELOW_1 = math.nextafter(1.0, 0.0)

SETTINGS = {
    "temperature 1": Sampling(),
    "temperature 0.7": Sampling(0.7),
    "temperature 1.5": Sampling(1.5),
    "top-k 5": Sampling(1.0, top_k=5),
    "top-k 1": Sampling(1.5, top_k=1),
    "top-k of all": Sampling(1.0, top_k=V),
    "top-k beyond all": Sampling(1.0, top_k=10_000),
    "top-p 0.8": Sampling(1.0, top_p=0.8),
    "top-p 0.8, temperature 1.5": Sampling(1.5, top_p=0.8),
    "top-p so small that one is left": Sampling(1.0, top_p=0.01),
    "both, top-k the narrower": Sampling(0.7, top_k=4, top_p=0.97),
    "both, top-p the narrower": Sampling(1.5, top_k=12, top_p=0.6),
}


def expected_shares(logits_V: torch.Tensor, how: Sampling) -> torch.Tensor:
    """float64 [V]: the definition. top-p is a share of what top-k left, the fewest that reach it."""
    p = (logits_V.double() / how.temperature).softmax(-1)
    order = p.argsort(descending=True).tolist()
    kept = order[: how.top_k or len(order)]
    within, total = sum(p[i].item() for i in kept), 0.0
    nucleus = []
    for i in kept:
        if how.top_p < 1 and total >= how.top_p:
            break
        nucleus.append(i)
        total += p[i].item() / within
    shares = torch.zeros_like(p)
    shares[nucleus] = p[nucleus] / p[nucleus].sum()
    return shares


def draw(logits_V: torch.Tensor, how: Sampling, uniform_S: torch.Tensor) -> torch.Tensor:
    """int64 [V]: how often each token came, one draw a uniform."""
    token_S, *_ = sample(logits_V.expand(len(uniform_S), -1), how, uniform_S)
    assert token_S.dtype == torch.int64
    return token_S.bincount(minlength=len(logits_V))


def chi_square_p(counts_V: torch.Tensor, shares_V: torch.Tensor) -> float:
    """The chance of a deviation as large; tokens expected fewer than 5 times are counted as one."""
    expected_V = shares_V * counts_V.sum()
    often = expected_V >= 5
    pairs = [(counts_V[often].double(), expected_V[often])]
    if expected_V[~often].sum() > 0:
        pairs.append((counts_V[~often].sum()[None].double(), expected_V[~often].sum()[None]))
    counts, expected = (torch.cat(x) for x in zip(*pairs))
    if len(counts) == 1:
        return 1.0
    statistic = ((counts - expected).square() / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2).item()


@pytest.mark.parametrize("how", SETTINGS.values(), ids=SETTINGS)
def test_frequencies_match_the_truncated_softmax(how):
    shares_V = expected_shares(LOGITS_V, how)
    # On an even grid each token comes as often as its share says, but for the ends of its interval.
    grid_S = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    assert (draw(LOGITS_V, how, grid_S) - 10_000 * shares_V).abs().max() <= 1.01
    random_S = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    counts_V = draw(LOGITS_V, how, random_S)
    assert not counts_V[shares_V == 0].any()
    assert chi_square_p(counts_V, shares_V) > 1e-3


@pytest.mark.parametrize(
    "how",
    [Sampling(1.0, top_p=0.9), Sampling(1.0, top_p=0.3), Sampling(1.3, top_k=HEAD + 100, top_p=0.99)],
    ids=["nucleus beyond HEAD", "nucleus within HEAD", "top-k and nucleus beyond HEAD"],
)
def test_flat_distribution_with_a_large_nucleus(how):
    shares_V = expected_shares(FLAT_V, how)
    assert ((shares_V > 0).sum() > HEAD) == (how.top_p > 0.5)
    grid_S = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert (draw(FLAT_V, how, grid_S) - 4000 * shares_V).abs().max() <= 1.01
    random_S = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    counts_V = draw(FLAT_V, how, random_S)
    assert not counts_V[shares_V == 0].any()
    assert chi_square_p(counts_V, shares_V) > 1e-3


def test_row_is_independent_of_a_neighbour_that_needs_a_full_sort():
    peaked_V = torch.where(torch.arange(len(FLAT_V)) < 3, FLAT_V + 20, FLAT_V)
    rows_SV = torch.stack([peaked_V, FLAT_V, peaked_V])
    uniform_S = torch.tensor([0.2, 0.97, 0.8], dtype=torch.float64)
    how = Sampling(1.0, top_p=0.95)
    together, *_ = sample(rows_SV, how, uniform_S)
    alone = [sample(rows_SV[i : i + 1], how, uniform_S[i : i + 1])[0].item() for i in range(3)]
    assert together.tolist() == alone


def test_chi_square_detects_a_wrong_distribution():
    """The proof above would see a temperature 5% off."""
    random_S = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    assert chi_square_p(draw(LOGITS_V, Sampling(1.05), random_S), expected_shares(LOGITS_V, Sampling(1.0))) < 1e-3


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 0.1, 1.0, 5.0, 50.0]),
    top_k=st.integers(0, 25),
    top_p=st.floats(0.001, 1.0),
    temperature=st.floats(0.3, 3.0),
    u=st.one_of(st.just(0.0), st.just(BELOW_1), st.floats(0.0, BELOW_1)),
)
def test_tokens_stay_within_top_k_and_top_p(seed, spread, top_k, top_p, temperature, u):
    """By rank and by share: fewer than k tokens are likelier, and those likelier do not reach top-p by themselves."""
    logits_SV = spread * torch.randn(3, 20, generator=torch.Generator().manual_seed(seed))
    token_S, *_ = sample(logits_SV, Sampling(temperature, top_k, top_p), torch.full((3,), u, dtype=torch.float64))
    for logits_V, token in zip(logits_SV.double(), token_S.tolist()):
        assert 0 <= token < 20
        likelier = logits_V > logits_V[token]
        assert likelier.sum() < (top_k or 20)
        p = (logits_V / temperature).softmax(-1)
        left = p.sort(descending=True).values[: top_k or 20].sum()
        assert p[likelier].sum() / left < top_p + 1e-5


@pytest.mark.parametrize("how", SETTINGS.values(), ids=SETTINGS)
def test_extreme_uniforms_give_tokens_of_positive_probability(how):
    """Half of the vocabulary is impossible, the first and the last token among it."""
    logits_V = torch.where(torch.arange(V) % 2 == 0, -torch.inf, LOGITS_V)
    logits_V[-1] = -torch.inf
    ends_S = torch.tensor([0.0, 2**-53, 0.5, 1 - 2**-52, BELOW_1], dtype=torch.float64)
    token_S, logprob_S, _ = sample(logits_V.expand(5, -1), how, ends_S)
    assert torch.isfinite(logits_V[token_S]).all()
    assert torch.isfinite(logprob_S).all()


def test_greedy_ignores_the_uniform():
    logits_SV = torch.randn(6, V, generator=torch.Generator().manual_seed(1))
    uniform_S = torch.linspace(0, BELOW_1, 6, dtype=torch.float64)
    token_S, logprob_S, _ = sample(logits_SV, Sampling(0.0), uniform_S)
    assert token_S.tolist() == logits_SV.argmax(-1).tolist()
    torch.testing.assert_close(logprob_S, logits_SV.log_softmax(-1).amax(-1))
    assert sample(logits_SV, Sampling(0.0, top_k=3, top_p=0.5), uniform_S)[0].tolist() == token_S.tolist()


@pytest.mark.parametrize("how", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprob_is_tempered_but_not_truncated(how, dtype):
    logits_SV = torch.randn(50, V, generator=torch.Generator().manual_seed(3)).to(dtype)
    uniform_S = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    token_S, logprob_S, _ = sample(logits_SV, how, uniform_S)
    expected_SV = (logits_SV.double() / how.temperature).log_softmax(-1)
    assert logprob_S.dtype == torch.float32
    torch.testing.assert_close(logprob_S.double(), expected_SV.gather(1, token_S[:, None])[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "--temperature is -0.1: give 0"),
        ({"temperature": math.nan}, "--temperature is nan"),
        ({"top_k": -1}, "--top-k is -1: give 0"),
        ({"top_p": 0.0}, "--top-p is 0.0: give a share"),
        ({"top_p": 1.1}, "--top-p is 1.1"),
        ({"top_p": math.nan}, "--top-p is nan"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Sampling(**wrong)
