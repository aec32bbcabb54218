"""Rollouts: shared prompts, chunks, budgets, limits, ends, and company change nothing; transformers and ranks agree."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from engine.base.errors import UserError
from engine.distributed.world import start_world
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.generation.workspace import Workspace
from engine.models import save_model
from tests.engine.generation.test_generate import (
    GREEDY,
    NO_EOS,
    REQUESTS,
    SIXTEEN,
    assert_same_response,
    each_model,
    lively,
    recomputed,
)  # fmt: skip
from tests.engine.models.tiny import VOCABULARY, assert_close
from tests.ranks import run_ranks


def samples_of(prompts, k, new):
    """Requests for k responses to each prompt, of different lengths."""
    return [Request(p, i, s, new - (i + s) % 3) for i, p in enumerate(prompts) for s in range(k)]


LONG_PROMPTS = [tuple((7 * i + j * j) % VOCABULARY for j in range(n)) for i, n in enumerate([130, 3, 64, 65, 90])]


@each_model
@pytest.mark.parametrize("how", ["whole", "in chunks", "few pages", "read seldom", "longest first"])
def test_result_is_independent_of_sharing_chunks_budget_and_order(name, how, monkeypatch):
    model, eos = lively(name), recomputed(name)[0]
    requests = samples_of(LONG_PROMPTS, 3, 9)
    run = partial(generate, model, requests, Sampling(), 5, eos, capture_layer=1)
    expected = run(share_prompts=False, num_slots=4)
    options = {
        "few pages": {"workspace": Workspace(4 * 64)},  # 139 positions, and the copy of a half-filled page
        "read seldom": {"steps_a_read": 4},
        "longest first": {"order": "longest"},
    }.get(how, {})
    if how == "in chunks":
        monkeypatch.setattr("engine.generation.step.PREFILL_TOKENS", 50)
    responses = run(num_slots=4, **options)
    for response, other in zip(responses, expected):
        assert_same_response(response, other)
    assert len({r.tokens for r in responses}) > 10
    if how == "few pages":
        with pytest.raises(UserError, match="request 0 needs 4 pages of 64 tokens .* the budget holds 3"):
            run(workspace=Workspace(4 * 64 - 1))


@each_model
def test_shared_prompt_runs_once_and_is_read_once(name):
    steps = []
    requests = [Request(LONG_PROMPTS[0], 0, s, 4) for s in range(5)]
    generate(lively(name), requests, Sampling(), 0, NO_EOS, on_step=steps.append)
    assert [s.prompt_tokens for s in steps] == [130, 0, 0, 0]
    assert [s.new_tokens for s in steps] == [5] * 4
    assert [s.rows for s in steps] == [0, 5, 5, 5]
    assert steps[1].positions_read == 5 * 131 - 4 * 128
    assert steps[1].pages == 3 + 4, "two full pages shared, one each for the rest"


def test_cache_budget_is_never_exceeded():
    model, steps = lively("llama, grouped heads"), []
    requests = [Request((i,) * 60, i, 0, 30) for i in range(6)]
    generate(model, requests, GREEDY, 0, NO_EOS, workspace=Workspace(5 * 64), on_step=steps.append)
    assert max(s.pages for s in steps) == 4
    assert max(s.rows for s in steps) == 2
    with pytest.raises(UserError, match="--cache-tokens is 63: give 64, one page, or more"):
        generate(model, requests, GREEDY, 0, NO_EOS, workspace=Workspace(63))


def test_min_new_tokens_and_several_eos():
    model, flat = lively("bloom, 6 heads"), Sampling(30.0)
    ends = tuple(range(0, VOCABULARY, 2))
    free = [Request((i + 1,), i, 0, 12) for i in range(20)]
    held = [Request((i + 1,), i, 0, 12, min_new_tokens=5) for i in range(20)]
    early, late = (generate(model, requests, flat, 0, ends) for requests in (free, held))
    assert min(len(r.tokens) for r in early) == 1
    assert all(r.ended and r.tokens[-1] in ends and not set(r.tokens[:-1]) & set(ends) for r in early)
    assert all(not set(r.tokens[:5]) & set(ends) for r in late)
    assert any(len(r.tokens) == 6 for r in late)


@each_model
def test_repetition_penalty_covers_prompt_and_response(name):
    model = lively(name)
    (response,) = generate(model, [Request((4, 8), 0, 0, 20)], Sampling(0.0, repetition_penalty=1e6), 0, NO_EOS)
    assert len({4, 8, *response.tokens}) == 22, "every token new"


class StopAt:
    """Stops at a pair of tokens, as a stop string does that spans two."""

    def __init__(self, pair):
        self.pair, self.last = pair, None

    def feed(self, tokens):
        (token,) = tokens
        found, self.last = (self.last, token) == self.pair, token
        return "stop" if found else None


@pytest.mark.parametrize("steps_a_read", [1, 3])
@pytest.mark.parametrize("capture_layer", [None, 2])
def test_stop_string_ends_its_response(steps_a_read, capture_layer):
    model = lively("llama, grouped heads")
    free = generate(model, REQUESTS, GREEDY, 0, NO_EOS, 3, capture_layer)
    pair = next(r.tokens[2:4] for r in free if len(r.tokens) > 6)
    stopped = generate(
        model, REQUESTS, GREEDY, 0, NO_EOS, 3, capture_layer,
        new_matcher=lambda: StopAt(pair), steps_a_read=steps_a_read,
    )  # fmt: skip
    for one, other in zip(free, stopped):
        cut = next((i + 2 for i in range(len(one.tokens) - 1) if one.tokens[i : i + 2] == pair), None)
        assert other.tokens == one.tokens[:cut]
        assert other.logprobs == one.logprobs[:cut]
        assert (other.stop, other.ended) == (("stop", True) if cut else (None, False))
        if capture_layer is not None:
            assert_close(other.trunk_ND, one.trunk_ND[: len(other.trunk_ND)], 1e-5)
    assert any(r.stop for r in stopped)


@pytest.mark.parametrize("name", ["bloom, 6 heads", "llama, grouped heads"])
def test_decode_is_batch_invariant(name):
    model = lively(name)
    run = partial(generate, model, sampling=Sampling(), seed=3, eos_id=NO_EOS)
    one_token = [Request((i % 60 + 1,), i, 0, 10) for i in range(64)]
    together = run(requests=one_token, num_slots=64)
    alone = [run(requests=[r])[0] for r in one_token[:8]]
    assert [r.logprobs for r in together[:8]] == [r.logprobs for r in alone]


@pytest.mark.parametrize("name", ["bloom, 8 heads", "llama, grouped heads"])
@torch.no_grad()
def test_greedy_tokens_of_200_prompts_equal_transformers(name, tmp_path):
    """Until the first tie: where the two likeliest logits are as close as rounding, either may be taken."""
    model = lively(name)
    save_model(model, tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    peer.generation_config = GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=None)
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 20, (200,), generator=generator).tolist()
    prompts = [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    ours = generate(model, [Request(tuple(p), i, 0, 12) for i, p in enumerate(prompts)], GREEDY, 0, NO_EOS, 64)
    width, ties = max(lengths), 0
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    made = peer.generate(ids, attention_mask=mask, output_scores=True, return_dict_in_generate=True)
    gaps = torch.stack([s.topk(2).values.diff().abs()[:, 0] / s.abs().amax(1) for s in made.scores], 1)
    for response, theirs, gap in zip(ours, made.sequences[:, width:].tolist(), gaps.tolist()):
        tie = next((i for i, g in enumerate(gap) if g < 1e-4), None)
        ties += tie is not None
        assert list(response.tokens[:tie]) == theirs[:tie]
    assert ties <= 4


def on_one_of_two(name):
    world = start_world()
    mine = SIXTEEN[world.rank :: world.size]
    return [r.tokens for r in generate(lively(name), mine, Sampling(), 3, NO_EOS)]


def test_two_ranks_sample_like_one():
    name = "bloom, 6 heads"
    ranks = run_ranks(on_one_of_two, 2, name)
    alone = [r.tokens for r in generate(lively(name), SIXTEEN, Sampling(), 3, NO_EOS)]
    assert [ranks[i % 2][i // 2] for i in range(16)] == alone
