"""Stage 1, decoding: recorded decode steps (CUDA graphs; on a CPU, tapes) against the same steps call by call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from engine.generation.decode_graphs import DecodeGraphs
from engine.generation.decode_tape import DecodeTape
from engine.generation.generate import Request, Sample, generate
from engine.generation.sampling import Sampling
from launch.gpu import tiny
from launch.gpu.lab import Lab
from launch.gpu.lines import Case, Measured, right


def cases(lab: Lab) -> list[Case]:
    """Return a case for each family that has a fast path."""
    lines = [right("responses with other tokens", "", 0), right("largest difference of a log-probability", "", 1e-4)]
    lines += [] if lab.fake else [right("captures that failed", "", 0)]  # on a CPU not every family has a tape
    return [
        Case(f"recorded decode steps, {family}", lines, partial(_recorded, lab, family), 20) for family in tiny.CONFIGS
    ]


def _recorded(lab: Lab, family: str) -> Measured:
    """Generate greedily with prompts alone and shared, and lengths so uneven that rows come and go."""
    model = tiny.model_of(family, lab.device).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    prompts = [tuple(torch.randint(4, tiny.VOCABULARY, (n,), generator=generator).tolist()) for n in (3, 70, 130, 5)]
    new = torch.randint(1, lab.pick(90, 20), (24,), generator=generator).tolist()
    requests = [Request(prompts[i // 6], i // 6, i % 6, n) for i, n in enumerate(new)]

    def responses() -> list[Sample]:
        return generate(model, requests, Sampling(0.0), 7, tiny.EOS, num_slots=13, capture_layer=1)

    with _graphs() as made:
        recorded = responses()
    with patch.object(DecodeGraphs, "of", lambda *_: None), patch.object(DecodeTape, "of", lambda *_: None):
        called = responses()
    differences = [abs(x - y) for a, b in zip(recorded, called) for x, y in zip(a.logprobs, b.logprobs)]
    return Measured({
        "responses with other tokens": sum(a.tokens != b.tokens for a, b in zip(recorded, called)),
        "captures that failed": sum(one is None for one in made),
        "largest difference of a log-probability": max(differences),
    })  # fmt: skip


@contextmanager
def _graphs() -> Iterator[list[DecodeGraphs | None]]:
    """Collect what DecodeGraphs.of returns: None where capturing failed, and always without a GPU."""
    made: list[DecodeGraphs | None] = []
    own = DecodeGraphs.of

    def of(*args: Any) -> DecodeGraphs | None:
        made.append(own(*args))
        return made[-1]

    with patch.object(DecodeGraphs, "of", of):
        yield made
