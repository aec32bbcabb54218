"""Fuzz targets of a model's folder: config.json, weights, their index, the tokenizer, generation settings."""

from __future__ import annotations

import functools
import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from engine.models.hf import empty_model, load_config, load_model
from engine.models.weight_files import SINGLE, read_weights, write_weights
from engine.run.template_choice import choose_template
from engine.text.chats import encode_instruction
from engine.text.eos import eos_ids_of
from engine.text.templates import CHAT, RECORD
from engine.text.tokenizer import check_vocab, decode, encode_prompt, encode_response, load_tokenizer
from engine.text.tokenizer import train_sentencepiece_model as train
from engine.training.scorers import score_moments
from tests.fuzz.corrupt import any_bytes, json_file
from tests.fuzz.reader import Reader
from tests.greetings import GREETINGS
from tests.launch import small

INDEX = "model.safetensors.index.json"
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
FORMS = {"name": "mine", "with_input": "{instruction} {input}", "without_input": "{instruction}"}
JINJA = "{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
GENERATION = {"eos_token_id": [2, 3], "temperature": 1.0}
MAX_LAYERS = 16  # build no larger config: a valid size may still take a minute


@functools.cache
def temporary() -> tempfile.TemporaryDirectory[str]:
    """Return the folder for models made once; it is deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="fuzz_")


@functools.cache
def model(family: str) -> Path:
    """Return a small model's folder. Do not write into it."""
    return small.make_model(Path(temporary().name, family), family)


@functools.cache
def bin_file(legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save(WEIGHTS, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@functools.cache
def safetensors_file() -> bytes:
    write_weights(Path(temporary().name), WEIGHTS, 1 << 30)
    return Path(temporary().name, SINGLE[0]).read_bytes()


@functools.cache
def sentencepiece_file() -> bytes:
    return train(list(GREETINGS.values())[:4] * 2, small.VOCABULARY)


def copied(family: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(model(family), folder, dirs_exist_ok=True)


def with_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


def make_shards(folder: Path) -> None:
    write_weights(folder, WEIGHTS, 16)


def config(path: Path) -> None:
    """Load a config and build an empty model from it."""
    found = load_config(path.parent)
    if found.num_hidden_layers <= MAX_LAYERS:
        weights = sum(parameter.numel() for parameter in empty_model(found, str(path)).parameters())
        assert weights > 0


def moments(path: Path) -> None:
    """Read a reward model's mean and deviation: None, or finite with a deviation above 0."""
    if (found := score_moments(path.parent)) is not None:
        assert all(map(math.isfinite, found)) and found[1] > 0


def reward_config() -> dict[str, Any]:
    config = json.loads((model("bloom") / "config.json").read_text(encoding="utf-8"))
    return {**config, "score_mean": -0.25, "score_std": 2.5}


def weights(path: Path) -> None:
    for stored in read_weights(path.parent).values():
        assert tuple(stored.read().shape) == stored.shape


def whole_model(path: Path) -> None:
    load_model(path.parent)


def tokenizer(path: Path) -> None:
    """Load a tokenizer, encode and decode with it, and make a prompt with its template."""
    found = load_tokenizer(path.parent)
    check_vocab(found, 1 << 40)
    assert encode_instruction(found, choose_template(None, path.parent, found).template, "Good")
    ids = [*encode_prompt(found, "शुभ a 12"), *encode_response(found, "Good</s> morning\n")]
    assert isinstance(decode(found, ids), str)


class _Sixteen:
    """A stand-in for a tokenizer with EOS 16."""

    eos_token_id = 16


def in_model(
    family: str, name: str, read: Callable[[Path], object], more: Mapping[str, object] | None = None
) -> Reader:
    return Reader(
        lambda: json_file({**json.loads((model(family) / name).read_text(encoding="utf-8")), **(more or {})}),
        read,
        name,
        copied(family),
    )


READERS = {
    "bloom config.json": in_model("bloom", "config.json", config),
    "llama config.json": in_model("llama", "config.json", config),
    "config.json of a reward model": Reader(lambda: json_file(reward_config()), moments, "config.json"),
    "bloom tokenizer.json": in_model("bloom", "tokenizer.json", tokenizer),
    "llama tokenizer.json": in_model("llama", "tokenizer.json", tokenizer),
    "tokenizer_config.json": in_model("llama", "tokenizer_config.json", tokenizer, {RECORD: FORMS}),
    "tokenizer_config.json of a chat": in_model(
        "bloom", "tokenizer_config.json", tokenizer, {RECORD: {"name": CHAT}, "chat_template": JINJA}
    ),
    "tokenizer.model": Reader(
        lambda: any_bytes(sentencepiece_file()), tokenizer, "tokenizer.model", with_sentencepiece
    ),
    "generation_config.json": Reader(
        json_file(GENERATION), lambda p: eos_ids_of(str(p.parent), _Sixteen, 20), "generation_config.json"
    ),
    "safetensors": Reader(lambda: any_bytes(safetensors_file()), weights, SINGLE[0]),
    "safetensors of a model": Reader(
        lambda: any_bytes((model("bloom") / SINGLE[0]).read_bytes()), whole_model, SINGLE[0], copied("bloom")
    ),
    "bin": Reader(lambda: any_bytes(bin_file(False)), weights, SINGLE[1]),
    "legacy bin": Reader(lambda: any_bytes(bin_file(True)), weights, SINGLE[1]),
    "shard index": Reader(
        json_file({"metadata": {}, "weight_map": {name: f"model-0000{i}-of-00002.safetensors" for i, name in
                                                  enumerate(WEIGHTS, 1)}}),
        weights, INDEX, make_shards,
    ),
}  # fmt: skip
