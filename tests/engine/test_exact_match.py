"""Exact match: the share of right answers, and the same answers from two ranks as from one."""

from __future__ import annotations

from engine.console import Console
from engine.distributed import start_world
from engine.encoding import Prompt
from engine.exact_match import exact_match
from engine.models import load_model
from engine.tokenizer import load_tokenizer
from tests.launch.small import make_model
from tests.ranks import run_ranks


def answers(path, outputs):
    model, tokenizer = load_model(path), load_tokenizer(path)
    prompts = [Prompt(str(i), tuple(range(5, 6 + 3 * i % 7)), "", output) for i, output in enumerate(outputs)]
    return exact_match(model, tokenizer, prompts, 6, start_world(), Console(False), 2)


def test_two_ranks_answer_as_one(tmp_path):
    path = str(make_model(tmp_path / "m"))
    _, texts = run_ranks(answers, 1, path, [""] * 5)[0]
    outputs = [f" {texts[0]}\n", texts[1], "no such answer", texts[3], "nor this"]
    assert run_ranks(answers, 1, path, outputs)[0] == (0.6, texts)
    assert run_ranks(answers, 2, path, outputs) == [(0.6, texts)] * 2
