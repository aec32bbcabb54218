"""Metrics: sums divided once by the count of all ranks, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from engine.distributed.world import World
from engine.training.metrics import Metrics

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def sent_by(metrics):
    """What a rank hands to the sum over ranks."""
    sent = []
    metrics.read(SimpleNamespace(device=CPU, sum=lambda x: sent.append(x) or x))
    return sent[0]


def filled(*added):
    metrics = Metrics()
    for name, total, count in added:
        metrics.add(name, total, count)
    return metrics


def test_mean_is_one_division_not_a_mean_of_means():
    metrics = filled(("loss", torch.tensor(30.0), 10), ("loss", 1.0, 1), ("kl", torch.tensor(3), torch.tensor(2)))
    metrics.add("grad_norm", 0.25)
    assert metrics.read(ALONE) == {"loss": 31 / 11, "kl": 1.5, "grad_norm": 0.25}


def test_ranks_are_weighted_by_count():
    mine = filled(("loss", torch.tensor(30.0), 10), ("kl", 1.0, 4))
    peers = filled(("loss", torch.tensor(990.0), 1000), ("kl", 2.0, 0))
    assert mine.read(SimpleNamespace(device=CPU, sum=lambda x: x + sent_by(peers))) == {"loss": 1020 / 1010, "kl": 0.75}


def test_read_clears_the_sums():
    metrics = filled(("loss", 2.0, 1))
    assert metrics.read(ALONE) == {"loss": 2.0}
    assert metrics.read(ALONE) == {}
    metrics.add("loss", 5.0)
    assert metrics.read(ALONE) == {"loss": 5.0}


def test_zero_count_is_left_out():
    assert filled(("a", 0.0, 0), ("b", 3.0, torch.tensor(0)), ("c", 1.0, 2)).read(ALONE) == {"c": 0.5}


def test_first_keeps_only_the_first_call():
    metrics = Metrics()
    for value in (7.0, 8.0, 9.0):
        metrics.first("error", value, 2)
    assert metrics.read(ALONE) == {"error": 3.5}
    metrics.first("error", 1.0)
    assert metrics.read(ALONE) == {"error": 1.0}


def test_sums_are_detached_float64():
    weight = torch.ones((), requires_grad=True)
    metrics = Metrics()
    metrics.add("loss", 1e8 * weight, 1)
    for _ in range(3):
        metrics.add("loss", weight, 0)
    sent = sent_by(metrics)
    assert not sent.requires_grad
    assert sent.tolist() == [[100_000_003.0], [1.0]]  # in float32 the three would be lost
