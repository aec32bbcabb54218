"""Parity: logits of every model type equal those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.batch import PackedBatch
from engine.models import build_model, load_model
from tests.engine.models.tiny import CONFIGS, SEQUENCES, assert_close, logits_of, ours, peer, peer_logits

BATCH = PackedBatch.from_sequences(SEQUENCES)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_equal_transformers(name, tmp_path):
    model = peer(CONFIGS[name]())
    assert_close(logits_of(ours(model, tmp_path), BATCH), peer_logits(model, SEQUENCES), 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_bf16_logits_are_as_exact_as_transformers(name, tmp_path):
    """The reference: transformers in float32 with the same bf16 weights.

    Both peers are loaded from files: `model.bfloat16()` would also round the rotary frequencies.
    """
    peer(CONFIGS[name]()).bfloat16().save_pretrained(tmp_path)
    actual = logits_of(load_model(tmp_path, torch.bfloat16), BATCH)
    assert actual.dtype == torch.bfloat16
    in_bf16, truth = (
        peer_logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager"), SEQUENCES)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert_close(logits_of(load_model(tmp_path), BATCH), truth, 1e-5)
    assert_close(actual, truth, 2e-2)
    assert (actual - truth).square().mean().sqrt() <= 1.1 * (in_bf16 - truth).square().mean().sqrt()


@pytest.mark.parametrize(
    ("name", "num_heads", "num_kv_heads", "head_size"),
    [("bloom, 8 heads", 8, 8, 6), ("llama, head size of its own", 6, 2, 20), ("llama, no groups", 6, 6, 8)],
)
def test_model_has_every_size(name, num_heads, num_kv_heads, head_size):
    model = build_model(CONFIGS[name](), seed=0)
    assert (model.num_layers, model.hidden_size, model.vocab_size) == (5, 48, 61)
    assert (model.num_heads, model.num_kv_heads, model.head_size) == (num_heads, num_kv_heads, head_size)
    assert len(model.layers) == 5
    assert [block.index for block in model.layers] == [0, 1, 2, 3, 4]


def test_tied_head_is_the_embedding_tensor():
    for name in ("bloom, 6 heads", "llama, tied"):
        model = build_model(CONFIGS[name](), seed=0)
        assert model.head_weight is model.embedding.weight
