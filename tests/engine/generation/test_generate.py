"""Generation against recomputing everything: tokens, log-probabilities, the kept trunk; a response is independent."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.generation.generate import Request, generate, stream
from engine.generation.sampling import Sampling
from engine.generation.workspace import Workspace
from engine.models import build_model
from kernels.skinny_linear.cpu import has_matrix_unit
from tests.engine.models.tiny import VOCABULARY, assert_close, bloom, llama, logits_of, mistral

CONFIGS = {
    "bloom, 8 heads": partial(bloom, n_layer=3, n_head=8),
    "bloom, 6 heads": partial(bloom, n_layer=3, n_head=6),
    "llama, grouped heads": partial(llama, num_hidden_layers=3),
}
GREEDY = Sampling(0.0)
NO_EOS = -1
each_model = pytest.mark.parametrize("name", CONFIGS)


@cache
def lively(name, dtype=torch.float32):
    """A random model, no term of it at its start, whose greedy text does not settle on one token.

    In BLOOM attention must count for more, or its tied head repeats the last token.
    """
    is_bloom = name.startswith("bloom")
    model = build_model(CONFIGS[name](initializer_range=0.4 if is_bloom else 0.3), seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if is_bloom and "attention_out.weight" in parameter_name:
                parameter.mul_(4)
            elif parameter.ndim == 1 and "final_norm" not in parameter_name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def requests_of(lengths, max_new_tokens):
    generator = torch.Generator().manual_seed(1)
    prompts = [tuple(torch.randint(VOCABULARY, (n,), generator=generator).tolist()) for n in lengths]
    return [Request(prompt, i, i % 3, n) for i, (prompt, n) in enumerate(zip(prompts, max_new_tokens))]


REQUESTS = requests_of([1, 40, 2, 7, 33, 3, 12, 25, 5, 18, 1, 9, 14], [20, 3, 16, 1, 12, 9, 20, 2, 15, 6, 11, 9, 13])


@cache
@torch.no_grad()
def recomputed(name):
    """(an EOS that ends some of the requests early, the greedy responses): the whole sequence for every token."""
    model, free = lively(name), []
    for request in REQUESTS:
        tokens = list(request.prompt)
        for _ in range(request.max_new_tokens):
            tokens.append(logits_of(model, PackedBatch.from_sequences([tokens]))[-1].argmax().item())
        free.append(tuple(tokens[len(request.prompt) :]))
    assert sum(len(set(tokens)) for tokens in free) > 40, "the text is too constant to tell anything"
    eos = max(range(VOCABULARY), key=lambda token: sum(token in tokens[:-1] for tokens in free))
    return eos, [tokens[: tokens.index(eos) + 1] if eos in tokens else tokens for tokens in free]


@each_model
@pytest.mark.parametrize("num_slots", [1, 2, 3, 128])
@pytest.mark.parametrize("capture_layer", [None, 1])
def test_greedy_tokens_equal_recomputing_everything(name, num_slots, capture_layer):
    eos, expected = recomputed(name)
    responses = generate(lively(name), REQUESTS, GREEDY, 0, eos, num_slots, capture_layer)
    assert [r.tokens for r in responses] == expected
    assert [r.ended for r in responses] == [tokens[-1] == eos for tokens in expected]
    early = [len(tokens) < request.max_new_tokens for tokens, request in zip(expected, REQUESTS)]
    assert any(early)
    assert not all(early)


@each_model
@pytest.mark.parametrize("how", [GREEDY, Sampling(), Sampling(0.7, top_k=20, top_p=0.9)], ids=str)
@torch.no_grad()
def test_logprobs_equal_a_packed_forward(name, how):
    model, eos = lively(name), recomputed(name)[0]
    responses = generate(model, REQUESTS, how, 5, eos, 3)
    batch = PackedBatch.from_sequences([(*q.prompt, *r.tokens) for q, r in zip(REQUESTS, responses)])
    logprob_TV = (logits_of(model, batch) / (how.temperature or 1.0)).log_softmax(-1)
    logprob_T = logprob_TV.gather(1, batch.target_T[:, None])[:, 0]
    for request, response, start in zip(REQUESTS, responses, batch.starts):
        first = start + len(request.prompt) - 1
        assert len(response.logprobs) == len(response.tokens) > 0
        expected = logprob_T[first : first + len(response.tokens)]
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, rtol=0, atol=1e-4)


@each_model
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("num_slots", [2, 128])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_kept_trunk_equals_a_packed_forward(name, layer, num_slots, dtype, relative):
    model, eos = lively(name, dtype), recomputed(name)[0]
    responses = generate(model, REQUESTS, GREEDY, 0, eos, num_slots, capture_layer=layer)
    batch = PackedBatch.from_sequences([(*q.prompt, *r.tokens) for q, r in zip(REQUESTS, responses)])
    with torch.no_grad():
        expected_TD = model.run(model.embed(batch), batch, 0, layer)
    for response, expected_ND in zip(responses, expected_TD.split(batch.lengths)):
        assert response.trunk_ND.shape == expected_ND.shape
        assert not response.trunk_ND.requires_grad
        for position in range(len(expected_ND)):
            error = (response.trunk_ND[position] - expected_ND[position]).abs().max()
            assert error <= relative * expected_ND[position].abs().max(), position


def test_no_capture_layer_keeps_no_trunk():
    assert all(r.trunk_ND is None for r in generate(lively("llama, grouped heads"), REQUESTS[:3], GREEDY, 0, NO_EOS))


SIXTEEN = requests_of([1, 5, 9, 2, 30, 4, 4, 17, 8, 3, 12, 6, 1, 21, 7, 10], [12, 3, 9, 12, 5, 8, 1, 12] * 2)


def assert_same_response(one, other):
    assert one.tokens == other.tokens
    assert one.ended == other.ended
    torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=0, atol=1e-4)
    assert_close(one.trunk_ND, other.trunk_ND, 1e-5)


@each_model
@pytest.mark.parametrize("how", [Sampling(), Sampling(1.5, top_k=30, top_p=0.95)], ids=str)
def test_response_is_batch_invariant(name, how):
    run = partial(generate, lively(name), sampling=how, seed=3, eos_id=recomputed(name)[0], capture_layer=2)
    together = run(requests=SIXTEEN)
    assert len({r.tokens for r in together}) > 8
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2)).tolist()
    others = {
        "alone": [run(requests=[request])[0] for request in SIXTEEN],
        "in another order": sorted_back(run(requests=[SIXTEEN[i] for i in order]), order),
        "in 3 slots": run(requests=SIXTEEN, num_slots=3),
        "in 5 slots, another order": sorted_back(run(requests=[SIXTEEN[i] for i in order], num_slots=5), order),
    }
    for responses in others.values():
        for one, other in zip(together, responses):
            assert_same_response(one, other)


def sorted_back(items, order):
    return [items[order.index(i)] for i in range(len(order))]


def test_seed_prompt_and_sample_select_the_random_stream():
    model, prompt = lively("llama, grouped heads"), (4, 8)
    flat = Sampling(30.0)

    def tokens(seed, *addresses):
        requests = [Request(prompt, p, s, 12) for p, s in addresses]
        return [r.tokens for r in generate(model, requests, flat, seed, NO_EOS)]

    addresses = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    all_five = tokens(0, *addresses)
    assert len({*all_five, *tokens(1, *addresses)}) == 10
    assert tokens(0, *reversed(addresses)) == all_five[::-1]
    assert tokens(0, (0, 0), (0, 0)) == [all_five[0]] * 2
    assert len(set(all_five[0])) > 6, "positions of one sequence draw numbers of their own"


@pytest.mark.parametrize("capture_layer", [None, 2])
def test_stream_yields_every_request_once_and_reports_progress(capture_layer):
    name = "bloom, 6 heads"
    model, eos, seen, calls = lively(name), recomputed(name)[0], {}, []
    progress = lambda finished, new_tokens: calls.append((finished, new_tokens))  # noqa: E731
    for index, response in stream(model, REQUESTS, GREEDY, 0, eos, 3, capture_layer, progress):
        assert index not in seen
        assert torch.is_grad_enabled(), "the caller's own code must keep its gradients"
        seen[index] = response.tokens
    assert [seen[i] for i in range(len(REQUESTS))] == recomputed(name)[1]
    assert list(seen) != sorted(seen), "short ones should not wait for long ones"
    assert calls == sorted(calls)
    assert calls[-1] == (len(REQUESTS), sum(len(tokens) for tokens in seen.values()))


@pytest.mark.parametrize("name", ["bloom, 6 heads", "llama, grouped heads"])
def test_reused_cache_does_not_leak_between_rollouts(name):
    model = lively(name)
    kept = Workspace(9 * 64)  # fewer pages than the requests want together
    for batch in (REQUESTS, requests_of([3, 50, 8], [70, 20, 30]), REQUESTS):
        roomy, fresh, reused = (
            generate(model, batch, Sampling(0.8), 3, NO_EOS, workspace=w) for w in (None, Workspace(9 * 64), kept)
        )
        assert [(r.tokens, r.logprobs) for r in reused] == [(r.tokens, r.logprobs) for r in fresh]
        assert [r.tokens for r in reused] == [r.tokens for r in roomy]
        for a, b in zip(reused, roomy):
            if has_matrix_unit():
                assert a.logprobs == b.logprobs
            else:  # a budget decides how many rows a product has, and PyTorch computes those of many rows
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert kept.cache.num_pages == 9


def test_no_requests_give_no_responses():
    assert generate(lively("bloom, 6 heads"), [], GREEDY, 0, NO_EOS) == []


def test_request_that_cannot_fit_is_refused():
    model = build_model(mistral(max_position_embeddings=16, num_hidden_layers=1), seed=0)
    fits = Request((1,) * 10, 0, 0, 6)
    assert len(generate(model, [fits], GREEDY, 0, NO_EOS)[0].tokens) == 6
    too_long = Request((1,) * 10, 1, 0, 7)
    with pytest.raises(UserError, match="request 1 needs 17 positions, the model has 16: shorten .* --max-new-tokens"):
        next(stream(model, [fits, too_long], GREEDY, 0, NO_EOS))
