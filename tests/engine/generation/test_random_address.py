"""Addressed random numbers: golden values of SplitMix64, uniform, independent of their neighbours and company."""

from __future__ import annotations

import pytest
import torch

from engine.generation.random_address import address, uniform

N = 20_000


def numbers(seed=0, prompt=0, sample=0, position=0) -> torch.Tensor:
    """float64 [N]: uniforms at N addresses; all but the seed are one number or a tensor [N]."""
    prompt, sample, position = (torch.as_tensor(x).expand(N).contiguous() for x in (prompt, sample, position))
    return uniform(address(seed, prompt, sample), position)


COUNT = torch.arange(N)
STREAMS = {
    "positions of one sequence": {"position": COUNT},
    "samples of one prompt": {"sample": COUNT, "position": 3},
    "prompts": {"prompt": COUNT, "position": 3},
    "prompts far apart": {"prompt": COUNT * 65_536, "position": 3},
    "prompt and sample equal": {"prompt": COUNT, "sample": COUNT},
    "another seed": {"seed": 2**63 + 12_345, "prompt": COUNT},
}


def test_generator_is_splitmix64():
    """The first outputs of SplitMix64 started at 0 and at 1234567, as published with its reference code."""
    published = {
        0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
        1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423],
    }
    for start, outputs in published.items():
        actual = uniform(torch.full((3,), start), torch.arange(3))
        assert actual.tolist() == [(x >> 11) / 2**53 for x in outputs]


def test_numbers_never_change():
    """Golden: another value here would change every rollout of every run."""
    address_S = address(7, torch.tensor([0, 0, 1, 5]), torch.tensor([0, 1, 0, 2]))
    golden = [0.044632269730652485, 0.1445755260103888, 0.522410182745967, 0.06866648819263199]
    assert uniform(address_S, torch.tensor([0, 0, 0, 9])).tolist() == golden


@pytest.mark.parametrize("name", STREAMS)
def test_numbers_are_uniform(name):
    """Kolmogorov-Smirnov at p = 0.001, and chi-square over 256 bins at the same."""
    u = numbers(**STREAMS[name])
    assert u.min() >= 0
    assert u.max() < 1
    ordered, steps = u.sort().values, torch.arange(N + 1, dtype=torch.float64) / N
    distance = torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max().item()
    assert distance * N**0.5 < 1.95
    observed = torch.histc(u, 256, 0, 1)
    statistic = (observed - N / 256).square().sum() / (N / 256)
    p = torch.special.gammaincc(torch.tensor(255 / 2), statistic.float() / 2).item()
    assert p > 1e-3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"position": COUNT}, {"position": COUNT + 1}),
        ({"position": COUNT}, {"position": COUNT, "sample": 1}),
        ({"position": COUNT}, {"position": COUNT, "prompt": 1}),
        ({"position": COUNT}, {"position": COUNT, "seed": 1}),
        ({"prompt": COUNT}, {"prompt": COUNT + 1}),
        ({"prompt": COUNT}, {"prompt": COUNT, "sample": 1}),
        ({"prompt": COUNT}, {"prompt": COUNT, "position": 1}),
        ({"prompt": COUNT}, {"prompt": COUNT, "seed": 1}),
        ({"prompt": COUNT, "sample": 1}, {"sample": COUNT, "prompt": 1}),
        ({"sample": COUNT}, {"sample": COUNT + 1}),
        ({"sample": COUNT}, {"sample": COUNT, "position": 1}),
    ],
    ids=lambda x: "-".join(x),
)
def test_neighbouring_numbers_are_uncorrelated(one, other):
    """Correlation of the numbers, and of whether they lie above one half: within 4 standard errors."""
    both = torch.stack([numbers(**one), numbers(**other)])
    limit = 4 / N**0.5
    differ = both[0] != both[1]  # with prompt and sample exchanged, (1, 1) is its own neighbour
    assert differ.sum() >= N - 1
    for pair in (both[:, differ], (both[:, differ] > 0.5).double()):
        assert abs(torch.corrcoef(pair)[0, 1].item()) < limit


def test_neighbouring_seeds_are_uncorrelated():
    seeds = torch.arange(4000)
    u = torch.cat([address(s, torch.zeros(1).long(), torch.zeros(1).long()) for s in seeds.tolist()])
    u = uniform(u, torch.zeros(4000).long())
    assert abs(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1].item()) < 4 / 4000**0.5
    assert abs(u.mean().item() - 0.5) < 4 / (12 * 4000) ** 0.5


def test_addresses_are_distinct():
    grid = torch.cartesian_prod(torch.arange(60), torch.arange(60))
    addresses = torch.cat([address(seed, grid[:, 0], grid[:, 1]) for seed in (0, 1, 2, -1, 2**64 - 2, 60)])
    assert len(addresses.unique()) == 6 * 3600


def test_seeds_are_modulo_2_to_the_64():
    one = torch.ones(1, dtype=torch.int64)
    assert address(-1, one, one) == address(2**64 - 1, one, one)
    assert address(2**64 + 5, one, one) == address(5, one, one)


def test_number_is_independent_of_the_batch():
    prompt, sample, position = torch.randint(0, 500, (3, 200), generator=torch.Generator().manual_seed(0))
    together = uniform(address(3, prompt, sample), position)
    alone = [uniform(address(3, prompt[i : i + 1], sample[i : i + 1]), position[i : i + 1]).item() for i in range(200)]
    assert together.tolist() == alone
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(uniform(address(3, prompt[order], sample[order]), position[order]), together[order])
