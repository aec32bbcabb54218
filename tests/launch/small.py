"""Helpers: models, reward models and record files small enough for a launcher to run in a second."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch

from engine.distributed.world import stop_world
from engine.init_model import init_model
from engine.models import load_model, save_model
from engine.text.tokenizer import load_tokenizer
from tests.greetings import GREETINGS

VOCABULARY = 320
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SHAPES = {
    "bloom": {"family": "bloom", "layers": 2, "hidden": 16, "heads": 2},
    "llama": {"family": "llama", "layers": 2, "hidden": 16, "heads": 2, "intermediate": 32},
}
INSTRUCTIONS = [
    {"id": "a", "instruction": "Say good morning", "input": "", "output": "Good morning"},
    {"id": "b", "instruction": "नेपालीमा भन", "input": "Good morning, how are you today?", "output": "शुभ प्रभात"},
    {"id": "c", "instruction": "Wie geht es", "input": "", "output": "Gut"},
    {"id": "d", "instruction": "Chào", "input": "x", "output": "Chào buổi sáng"},
    {"id": "e", "instruction": "Bon dia", "input": "", "output": "Bon dia"},
]
RANKINGS = [
    {"id": row["id"], "instruction": row["instruction"], "input": row["input"], "responses": ["yes", "no", "good"],
     "ranks": [2, 3, 1]}
    for row in INSTRUCTIONS
]  # fmt: skip


def make_model(path: Path, family: str = "bloom", seed: int = 0, vocabulary: int = VOCABULARY) -> Path:
    """Write a random language model with its tokenizer."""
    texts = list(GREETINGS.values()) * 2 if family == "bloom" else list(GREETINGS.values())[:4] * 2
    init_model(texts, vocabulary, path, seed=seed, **SHAPES[family])
    return path


def make_reward_model(path: Path, base: Path, score: float = 0.1) -> Path:
    """Write a reward model with the tensors of `base` and a head whose weights all equal `score`."""
    model = load_model(base)
    save_model(model, path, load_tokenizer(base), score_weight_D=torch.full((model.hidden_size,), score))
    return path


def make_ending_model(folder: Path) -> Path:
    """Write a model `m` that samples EOS about every fifth token, and prompts.jsonl with five prompts."""
    base = make_model(folder / "base")
    model, tokenizer = load_model(base), load_tokenizer(base)
    with torch.no_grad():
        model.final_norm.bias.fill_(1.0)
        model.embedding.weight[tokenizer.eos_token_id] = 0.2
    save_model(model, folder / "m", tokenizer)
    write_rows(folder / "prompts.jsonl", INSTRUCTIONS)
    return folder


# A chat template that fails in a different way for each of these words in the last message.
FAILS = "{% set said = messages[-1]['content'] %}{% if 'divide' in said %}{{ 1 // 0 }}{% endif %}"
FAILS += "{% if 'call' in said %}{{ said() }}{% endif %}"
FAILS += "{% if 'lines' in said %}{{ raise_exception('two\\nlines') }}{% endif %}"
FAILS += "{% if 'nothing' not in said %}{{ said }}{% endif %}"


def with_failing_chat_template(model: Path, copy: Path) -> Path:
    """Copy a model and give its tokenizer the failing chat template."""
    shutil.copytree(model, copy)
    (copy / "chat_template.jinja").write_text(FAILS)
    return copy


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@contextmanager
def alone() -> Iterator[None]:
    """Run as the only rank, and clean up for other tests."""
    before = {name: os.environ.pop(name, None) for name in RANK_VARIABLES}
    yield
    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # not torch's, which would leave DeepSpeed with a destroyed group
    stop_world()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
