"""Real models against transformers: logits, greedy answers, perplexity, texts longer than the window."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from engine.batch import PackedBatch
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from kernels.linear_logprob import linear_logprob
from tests.real.models import SCRIPTS, assert_close, hidden, passage, phrases, written

pytestmark = pytest.mark.real
GREEDY = Sampling(temperature=0.0)
NEW_TOKENS = 24
TIE = 1e-4  # two logits that close may be ordered either way by rounding


@pytest.mark.parametrize("sizes", [(40,), pytest.param((40, 200), marks=pytest.mark.slow)])
@torch.no_grad()
def test_logits_in_eight_scripts(loaded, sizes):
    """All texts in one pack against one text at a time."""
    texts = [passage(lang, size) for lang in SCRIPTS for size in sizes]
    sequences = [loaded.tokenizer(text).input_ids for text in texts]
    h_TD = hidden(loaded.model, sequences)
    for text, sequence, h_LD in zip(texts, sequences, h_TD.split([len(s) for s in sequences])):
        expected_LV = loaded.peer(torch.tensor([sequence])).logits[0]
        assert_close(h_LD @ loaded.model.head_weight.T, expected_LV, 1e-5, text)


class Gaps(LogitsProcessor):
    """Records how far apart the two largest logits of each step are, and changes nothing."""

    def __init__(self):
        self.steps = []

    def __call__(self, input_ids, scores):
        self.steps.append(scores.topk(2).values.diff().abs()[:, 0])
        return scores


@torch.no_grad()
def greedy_peer(loaded, prompts, new_tokens):
    """(tokens, gap between the two largest logits of each step) of each prompt, by transformers, padded on the left."""
    peer, eos, pad, gaps = loaded.peer, loaded.tokenizer.eos_token_id, 0, Gaps()
    peer.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, pad_token_id=pad, eos_token_id=eos
    )
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    made = peer.generate(ids, attention_mask=mask, logits_processor=LogitsProcessorList([gaps]))
    answers = []
    for tokens in made[:, width:].tolist():
        answers.append(tokens[: tokens.index(eos) + 1] if eos in tokens else tokens)
    return answers, torch.stack(gaps.steps, 1).tolist()


def check_answers(ours, theirs, gaps) -> None:
    """Token for token; a mismatch is excused only where transformers' two likeliest tokens are a tie, and few are."""
    excused = []
    for i, (response, tokens, gap) in enumerate(zip(ours, theirs, gaps, strict=True)):
        mine = list(response.tokens)
        if mine == tokens:
            continue
        at = next((k for k, (a, b) in enumerate(zip(mine, tokens)) if a != b), min(len(mine), len(tokens)))
        assert gap[at] < TIE, (
            f"prompt {i}, token {at}: {mine[at:]} is not {tokens[at:]}, logits differ by {gap[at]:.1e}"
        )
        excused.append(i)
    assert len(excused) <= 2, f"ties explain the other answers to prompts {excused}: too many to be chance"


@pytest.mark.slow
def test_greedy_answers_of_64_prompts(loaded):
    """Prompts of 2 to 21 tokens through 24 slots, so that slots are refilled while others decode."""
    texts = [phrases(lang)[i] for i in range(8) for lang in SCRIPTS]
    prompts = [loaded.tokenizer(text).input_ids[: 2 + 7 * i % 20] for i, text in enumerate(texts)]
    assert len(prompts) == 64 and len({len(p) for p in prompts}) > 10
    requests = [Request(tuple(p), i, 0, NEW_TOKENS) for i, p in enumerate(prompts)]
    running = []
    ours = generate(
        loaded.model, requests, GREEDY, 0, loaded.tokenizer.eos_token_id, 24, on_step=lambda s: running.append(s.rows)
    )
    assert max(running) <= 24
    check_answers(ours, *greedy_peer(loaded, prompts, NEW_TOKENS))


@pytest.mark.slow
@torch.no_grad()
def test_perplexity(loaded, request):
    """20 kB of Nepali, Vietnamese and English, in pieces of 256 tokens."""
    try:
        data = request.getfixturevalue("real_data")
    except pytest.skip.Exception:
        data = None  # the language kits are always there
    for lang, size in (("ne", 4000), ("vi", 6000), ("en", 10_000)):
        ids = loaded.tokenizer(written(lang, size, data)).input_ids
        pieces = [ids[i : i + 256] for i in range(0, len(ids) - 1, 256)]
        batch = PackedBatch.from_sequences(pieces)
        columns_A = torch.cat([torch.arange(a, b - 1) for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:])])
        h_AD, target_A = hidden(loaded.model, pieces)[columns_A], batch.target_T[columns_A]
        ours = -linear_logprob(h_AD, loaded.model.head_weight, target_A)[0].double().mean()
        total = 0.0
        for piece in pieces:
            logits_LV = loaded.peer(torch.tensor([piece])).logits[0, :-1]
            target_L = torch.tensor(piece[1:])
            total += float((logits_LV.logsumexp(1) - logits_LV.gather(1, target_L[:, None])[:, 0]).double().sum())
        theirs = total / len(target_A)
        assert math.exp(ours) == pytest.approx(math.exp(theirs), rel=1e-5), lang
        assert 1 < math.exp(theirs) < 1000, f"{lang}: perplexity {math.exp(theirs)} is not that of a trained model"


@pytest.mark.slow
@torch.no_grad()
def test_text_longer_than_the_window(loaded):
    """700 tokens, Gemma's window is 512: logits after it, and a greedy answer from there on."""
    if loaded.name != "gemma3":
        pytest.skip("has no window")
    long = loaded.tokenizer(passage("en", 10_000)).input_ids[:700]
    assert len(long) == 700 and loaded.model.layers[0].options.window == 512
    columns = [0, 100, 510, 511, 512, 513, 600, *range(680, 700)]
    peer_h = loaded.peer.model(torch.tensor([long])).last_hidden_state[0, columns]
    expected = loaded.peer.lm_head(peer_h)
    assert_close(hidden(loaded.model, [long])[columns] @ loaded.model.head_weight.T, expected, 1e-5, "long text")
    prompts = [long, long[:505]]  # one begins beyond the window, one crosses it
    requests = [Request(tuple(p), i, 0, NEW_TOKENS) for i, p in enumerate(prompts)]
    ours = generate(loaded.model, requests, GREEDY, 0, loaded.tokenizer.eos_token_id)
    check_answers(ours, *greedy_peer(loaded, prompts, NEW_TOKENS))
