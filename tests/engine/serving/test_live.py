"""The live engine against `generate`: whoever joins or leaves when, tokens, scores and pages are as they should be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.generation import step as generation_step
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.serving.live import BROKEN, LENGTH, STOP, LiveEngine, LiveRequest
from engine.serving.token_scores import score_tokens
from tests.engine.generation.test_generate import CONFIGS, each_model, lively
from tests.engine.models.tiny import VOCABULARY, logits_of

HOWS = [Sampling(0.0), Sampling(), Sampling(0.7, top_k=20, top_p=0.9), Sampling(1.3, repetition_penalty=1.5)]
EOS, MAX_LENGTH = (7, 20, 33, 50), 60
NAMES = list(CONFIGS)


def requests_of(n, num_top=None, score_prompt=False):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 40, (n,), generator=generator).tolist()
    prompts = [tuple(torch.randint(VOCABULARY, (length,), generator=generator).tolist()) for length in lengths]
    return [
        LiveRequest(p, 100 + i, i % 2, 1 + (7 * i) % 20, i % 5, None, HOWS[i % len(HOWS)], num_top, score_prompt)
        for i, p in enumerate(prompts)
    ]


def engine_of(name, num_slots=3, num_pages=6, eos_ids=EOS):
    return LiveEngine(lively(name), num_slots, num_pages, MAX_LENGTH, eos_ids)


def alone(name, request):
    """(tokens, whether EOS ended them) of a request by itself, as the batch path makes them."""
    plain = Request(
        request.prompt, request.prompt_id, request.sample_id, request.max_new_tokens, request.min_new_tokens
    )
    (response,) = generate(lively(name), [plain], request.sampling, 0, EOS)
    return list(response.tokens), response.ended


def run_to_end(engine):
    events = []
    while not engine.is_idle:
        events += engine.advance()
    return events


def assert_all_free(engine):
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_pages
    assert len(engine.scheduler.free_slots) == engine.rows.token_CN.shape[0]
    assert len(engine.rows) == 0


@each_model
def test_joining_a_running_batch_changes_nothing(name):
    requests, engine, events = requests_of(12), engine_of(name), []
    for request in requests:
        engine.add([request])
        events += engine.advance()
    events += run_to_end(engine)
    for index, request in enumerate(requests):
        mine, (tokens, ended) = [event for event in events if event.index == index], alone(name, request)
        assert [event.token for event in mine] == tokens
        assert [event.end for event in mine] == [*[None] * (len(tokens) - 1), STOP if ended else LENGTH]
    assert {event.end for event in events} == {None, STOP, LENGTH}
    assert_all_free(engine)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3), st.integers(0, 20)), max_size=25), st.booleans())
def test_cancelling_changes_no_other_request_and_frees_all_pages(moves, in_pieces):
    name, engine = NAMES[2], engine_of(NAMES[2])
    requests, added, got, cancelled, ended = requests_of(12), {}, {}, set(), set()

    def take(events):
        for event in events:
            assert event.index not in cancelled | ended
            got.setdefault(event.index, []).append(event.token)
            if event.end:
                ended.add(event.index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_step, "PREFILL_TOKENS", 9 if in_pieces else 512)
        for which, copies, victim in moves:
            prompts = [replace(requests[which], sample_id=k) for k in range(copies)]
            added |= dict(zip(engine.add(prompts), prompts))
            if victim in added and victim not in ended:
                engine.cancel(victim)
                cancelled.add(victim)
            take(engine.advance())
        take(run_to_end(engine))
    assert ended | cancelled == set(added)
    for index in ended - cancelled:
        assert got[index] == remembered(name, added[index])
    for index in cancelled & got.keys():
        assert got[index] == remembered(name, added[index])[: len(got[index])]
    assert_all_free(engine)


_known = {}


def remembered(name, request):
    if request not in _known:
        _known[request] = alone(name, request)[0]
    return _known[request]


@each_model
@pytest.mark.parametrize("prefill_tokens", [5, 8, 512])
def test_scores_equal_a_packed_forward(name, prefill_tokens, monkeypatch):
    monkeypatch.setattr(generation_step, "PREFILL_TOKENS", prefill_tokens)
    engine, asked = engine_of(name, eos_ids=()), requests_of(6, num_top=4, score_prompt=True)
    quiet = requests_of(6)  # beside them, asking for none
    indices = [i for pair in zip(asked, quiet) for i in engine.add(pair)]
    events = run_to_end(engine)
    for index, request in zip(indices[::2], asked):
        mine = [event for event in events if event.index == index]
        assert all(not event.prompt_scores for event in mine[1:])
        scores = [*mine[0].prompt_scores, *(event.score for event in mine)]
        tokens = [*request.prompt, *(event.token for event in mine)]
        assert [score.token for score in scores] == tokens[1:]
        with torch.no_grad():
            logits_TV = logits_of(lively(name), PackedBatch.from_sequences([tokens]))
        expected = score_tokens(logits_TV[:-1], torch.tensor(tokens[1:]), [4] * (len(tokens) - 1))
        for score, other in zip(scores, expected, strict=True):
            assert score.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [logprob for _, logprob in score.top] == pytest.approx([x for _, x in other.top], abs=1e-4)
    assert all(event.score is None and not event.prompt_scores for event in events if event.index in indices[1::2])


def test_scores_by_hand():
    logits_SV = torch.tensor([[0.0, math.log(3.0), -math.inf], [1.0, 1.0, 1.0]])
    one, two = score_tokens(logits_SV, torch.tensor([0, 2]), [2, 0])
    assert (one.token, one.logprob) == (0, pytest.approx(math.log(0.25)))
    assert one.top == ((1, pytest.approx(math.log(0.75))), (0, one.logprob))
    assert two == (2, pytest.approx(-math.log(3)), ())


def test_shared_prompt_is_scored_once_for_all_responses():
    request = replace(requests_of(1, num_top=1, score_prompt=True)[0], prompt=tuple(range(30)), max_new_tokens=3)
    engine = engine_of(NAMES[0], num_slots=2)
    engine.add([replace(request, sample_id=k) for k in range(3)])
    events = run_to_end(engine)
    scored = [event for event in events if event.prompt_scores]
    assert [event.index for event in scored] == [0, 1, 2]
    assert len({tuple(event.prompt_scores) for event in scored}) == 1
    assert len(scored[0].prompt_scores) == 29
    assert engine.prompt_tokens_run == 30


def test_one_token_prompt_has_no_scores():
    engine = engine_of(NAMES[1])
    engine.add([LiveRequest((3,), 0, 0, 2, num_top=1, score_prompt=True)])
    first, _ = run_to_end(engine)
    assert first.prompt_scores == []
    assert first.score.token == first.token


def test_prompt_of_full_length_gets_one_token():
    engine = engine_of(NAMES[1], eos_ids=())
    engine.add([LiveRequest((3,) * MAX_LENGTH, 0, 0, 1)])
    (event,) = run_to_end(engine)
    assert event.end == LENGTH
    with pytest.raises(UserError, match="request 1 needs 7 pages"):
        engine.add([LiveRequest((3,) * 400, 0, 0, 1)])
    assert engine.is_idle


def test_row_with_nan_ends_and_others_continue():
    name, requests = NAMES[2], requests_of(4)
    engine = engine_of(name, num_slots=4)
    model = engine.model
    weight = model.embedding.weight
    poisoned = next(t for t in range(VOCABULARY) if all(t not in (*r.prompt, *alone(name, r)[0]) for r in requests[1:]))
    before = weight[poisoned].clone()
    with torch.no_grad():
        weight[poisoned] = float("nan")
    try:
        bad, *good = engine.add([replace(requests[0], prompt=(poisoned,)), *requests[1:]])
        events = run_to_end(engine)
    finally:
        with torch.no_grad():
            weight[poisoned] = before
    assert [event.end for event in events if event.index == bad] == [BROKEN]
    for index, request in zip(good, requests[1:]):
        assert [event.token for event in events if event.index == index] == alone(name, request)[0]
    assert_all_free(engine)


def test_cancelling_unknown_and_finished_requests_is_harmless():
    engine = engine_of(NAMES[0])
    (index,) = engine.add(requests_of(1))
    run_to_end(engine)
    engine.cancel(index)
    engine.cancel(99)
    assert engine.is_idle
