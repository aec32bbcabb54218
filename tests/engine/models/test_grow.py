"""Rows for new tokens: by hand, for tied and untied heads, and logits of old tokens unchanged."""

from __future__ import annotations

import pytest
import torch

from engine.batch import PackedBatch
from engine.models.grow import grow
from tests.engine.training.trainers import FAMILIES, tiny_model


def logits(model, tokens):
    batch = PackedBatch.from_sequences([tokens])
    h_TD = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers))
    return h_TD @ model.head_weight.T


@pytest.mark.parametrize("way", ["mean", "ends"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_new_rows_are_made_of_old_ones(family, way):
    model = tiny_model(family)
    size = model.vocab_size
    grown = grow(model, size, [(5, 6, 9), (7,)], way)
    embedding, head = model.embedding.weight, model.head_weight
    assert grown.vocab_size == grown.config.vocab_size == size + 2 and model.config.vocab_size == size
    expected = embedding[[5, 6, 9]].mean(0) if way == "mean" else embedding[9]
    assert torch.allclose(grown.embedding.weight[size], expected)
    assert torch.equal(grown.embedding.weight[size + 1], embedding[7])
    if model.head is not None:
        expected = head[[5, 6, 9]].mean(0) if way == "mean" else head[5]
        assert torch.allclose(grown.head.weight[size], expected)
    old, new = logits(model, [5, 6, 9, 7]), logits(grown, [5, 6, 9, 7])
    assert torch.allclose(new[:, :size], old, atol=1e-6)
    assert torch.allclose(new[:, size + 1], old[:, 7], atol=1e-6)


def test_rows_that_the_model_already_has_are_used_first():
    """A published model may have more rows than tokens."""
    model = tiny_model("llama")
    grown = grow(model, model.vocab_size - 1, [(3, 4)])
    assert grown.vocab_size == model.vocab_size
    assert torch.allclose(grown.embedding.weight[-1], model.embedding.weight[[3, 4]].mean(0))
