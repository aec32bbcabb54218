"""The context length: from the config, else from the tokenizer, else 2,048."""

from __future__ import annotations

from transformers import BloomConfig, LlamaConfig

from evaluation.scoring.context_length import context_length
from tests.evaluation.made_up import byte_tokenizer


def test_config_wins_then_tokenizer_then_2048():
    tokenizer = byte_tokenizer()
    assert context_length(LlamaConfig(max_position_embeddings=777), tokenizer) == 777
    assert context_length(BloomConfig(), tokenizer) == 2048
    tokenizer.model_max_length = 512
    assert context_length(BloomConfig(), tokenizer) == 512
    assert context_length(LlamaConfig(max_position_embeddings=777), tokenizer) == 777
