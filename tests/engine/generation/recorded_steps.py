"""Small models of every family, and what is the same in two rollouts: for the tests of recorded decode steps."""

from __future__ import annotations

import torch
from transformers import ApertusConfig, BloomConfig, Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3Config

from engine.models.apertus import Apertus
from engine.models.bloom import Bloom
from engine.models.gemma3 import Gemma3
from engine.models.llama import Llama

SIZES = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA_SIZES = {**SIZES, "intermediate_size": 80, "num_key_value_heads": 2, "max_position_embeddings": 2048}
CASES = {
    "llama": (Llama, LlamaConfig(**LLAMA_SIZES)),
    "qwen2": (Llama, Qwen2Config(**LLAMA_SIZES)),
    "qwen3": (Llama, Qwen3Config(**LLAMA_SIZES, head_dim=16)),
    "gemma3": (Gemma3, Gemma3TextConfig(**LLAMA_SIZES, head_dim=32, sliding_window=50, sliding_window_pattern=2)),
    "apertus": (Apertus, ApertusConfig(**LLAMA_SIZES)),
    "bloom": (Bloom, BloomConfig(vocab_size=97, hidden_size=64, n_layer=3, n_head=4)),
}


def model_of(name):
    kind, config = CASES[name]
    torch.manual_seed(0)
    return kind(config).requires_grad_(False)


def assert_same(a, b):
    """Tokens, log-probabilities and trunk, to the bit."""
    assert [r.tokens for r in a] == [r.tokens for r in b]
    assert [r.logprobs for r in a] == [r.logprobs for r in b]
    assert all(torch.equal(x.trunk_ND, y.trunk_ND) for x, y in zip(a, b))
