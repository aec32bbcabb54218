"""Exact match: the share of right answers, and the same answers from two ranks as from one."""

from __future__ import annotations

import pytest

from engine.cli.console import Console
from engine.distributed.world import start_world
from engine.models import build_model, load_model
from engine.text.encoding import Prompt
from engine.text.tokenizer import load_tokenizer
from engine.training.exact_match import exact_match
from tests.engine.models.tiny import llama
from tests.engine.training.trainers import EOS, VOCABULARY, one_rank, tiny_tokenizer
from tests.launch.small import make_model
from tests.ranks import run_ranks


def answers(path, outputs):
    model, tokenizer = load_model(path), load_tokenizer(path)
    prompts = [Prompt(str(i), tuple(range(5, 6 + 3 * i % 7)), "", output) for i, output in enumerate(outputs)]
    return exact_match(model, tokenizer, (tokenizer.eos_token_id,), prompts, 6, start_world(), Console(False), 2)


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def test_answer_ends_at_the_models_maximum_length(world):
    """A prompt that fills all but two positions is answered with two tokens, not refused after the training."""
    model = build_model(llama(num_hidden_layers=1, vocab_size=VOCABULARY), seed=0)
    prompts = [Prompt("long", (5,) * 254, "", ""), Prompt("short", (5,) * 9, "", "")]
    _, texts = exact_match(model, tiny_tokenizer(), (EOS,), prompts, 6, world, Console(False))
    assert [len(text.split()) for text in texts] == [2, 6]


def test_every_eos_ends_an_answer(world):
    model = build_model(llama(num_hidden_layers=1, vocab_size=VOCABULARY, initializer_range=0.3), seed=1)
    prompts = [Prompt("a", (5, 6), "", "")]
    _, (text,) = exact_match(model, tiny_tokenizer(), (EOS,), prompts, 6, world, Console(False))
    words = text.split()
    second = int(words[2][1:])
    before = " ".join(words[: words.index(words[2])])
    right, texts = exact_match(
        model, tiny_tokenizer(), (EOS, second), [Prompt("a", (5, 6), "", before)], 6, world, Console(False)
    )
    assert (right, texts) == (1.0, [before])


def test_two_ranks_answer_like_one(tmp_path):
    path = str(make_model(tmp_path / "m"))
    _, texts = run_ranks(answers, 1, path, [""] * 5)[0]
    outputs = [f" {texts[0]}\n", texts[1], "no such answer", texts[3], "nor this"]
    assert run_ranks(answers, 1, path, outputs)[0] == (0.6, texts)
    assert run_ranks(answers, 2, path, outputs) == [(0.6, texts)] * 2
