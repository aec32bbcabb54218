"""Decode steps on tape against the same steps call by call: tokens, log-probabilities, trunk, to the bit."""

from __future__ import annotations

import pytest
import torch

from engine.generation.decode_tape import DecodeTape
from engine.generation.generate import Request, generate
from engine.generation.kv_cache import KVCache
from engine.generation.sampling import Sampling
from engine.models.quantised import quantise_trunk, valued_weights
from kernels.common import tape
from tests.engine.generation.recorded_steps import assert_same, model_of

pytestmark = pytest.mark.skipif(not tape.can_record(), reason="no C++ compiler here: nothing is recorded")


def requests():
    generator = torch.Generator().manual_seed(1)
    prompts = [tuple(torch.randint(0, 97, (n,), generator=generator).tolist()) for n in (3, 70, 130, 5)]
    wanted = [(0, 40), (0, 3), (1, 90), (1, 20), (2, 33), (3, 64), (3, 1), (3, 12)]
    return [Request(prompts[p], p, i, n) for i, (p, n) in enumerate(wanted)]


def run(model, **options):
    return generate(model, requests(), Sampling(temperature=0.9, top_k=20), 7, 5, capture_layer=2, **options)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3", "bloom"])
@pytest.mark.parametrize("num_slots", [1, pytest.param(3, marks=pytest.mark.slow), 8])
def test_rollout_on_tape_equals_rollout_without(name, num_slots, monkeypatch):
    model = model_of(name)
    with_tape = run(model, num_slots=num_slots)
    monkeypatch.setattr(DecodeTape, "of", classmethod(lambda *_: None))
    assert_same(with_tape, run(model, num_slots=num_slots))


@pytest.mark.parametrize(
    "name", ["llama", "bloom", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gemma3"))]
)
@pytest.mark.parametrize(("trunk_dtype", "embedding_dtype"), [("int8", "model"), ("int4", "int8"), ("model", "int4")])
def test_codes_on_tape_give_the_rollout_of_their_values(name, trunk_dtype, embedding_dtype, monkeypatch):
    """The same bits as a model that holds the values, which is what is exported."""
    model, valued = model_of(name), model_of(name)
    quantise_trunk(model, 2, trunk_dtype, embedding_dtype)
    valued.load_state_dict({n: w.read() for n, w in valued_weights(model).items()})
    of_codes, of_values = (DecodeTape.of(m, KVCache(m, 4), 4, 2, 0) for m in (model, valued))
    assert (of_codes is None) == (of_values is None)
    rollout = run(model, num_slots=3)
    assert_same(rollout, run(valued, num_slots=3))
    monkeypatch.setattr(DecodeTape, "of", classmethod(lambda *_: None))
    assert_same(rollout, run(model, num_slots=3))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_rows_longer_than_an_attention_chunk(name, monkeypatch):
    """Beyond 512 positions a row's attention is merged from chunks, in memory that the tape provides."""
    model = model_of(name)
    long = [Request(tuple(range(90)) * 7, 0, i, 30) for i in range(2)] + [Request((1, 2), 1, 0, 30)]
    with_tape = generate(model, long, Sampling(), 7, 5)
    monkeypatch.setattr(DecodeTape, "of", classmethod(lambda *_: None))
    assert [r.tokens for r in with_tape] == [r.tokens for r in generate(model, long, Sampling(), 7, 5)]


def test_tape_records_with_gradients_enabled():
    """As in a server, which makes its engine once and for all."""
    model = model_of("llama").requires_grad_(True)
    assert torch.is_grad_enabled()
    assert DecodeTape.of(model, KVCache(model, 4), 4, 2, 0) is not None


def test_model_that_needs_torch_has_no_tape():
    model = model_of("apertus")
    assert DecodeTape.of(model, KVCache(model, 4), 4, 2, 0) is None
    assert all(r.tokens for r in generate(model, requests(), Sampling(), 7, 5))
