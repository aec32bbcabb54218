"""Sizes of a model's parts: numbers of weights, and bytes of what is not trained, in any number of bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from engine.models.quantised import stored_bytes
from kernels.linear_logprob import DEQUANTISED_AT_ONCE

DEQUANTISING_BYTES = 10  # per weight of a tile of the head: codes unpacked, and two steps in float32


@dataclass(frozen=True)
class Sizes:
    """Number of weights by part of a model."""

    layer: int
    layer_matrices: int
    embedding: int
    head: int
    norm: int

    @staticmethod
    def of(model: nn.Module) -> Sizes:
        layer = list(model.layers[0].parameters())
        embedding = sum(p.numel() for n, p in model.named_parameters() if n.startswith("embedding"))
        head = 0 if model.head is None else model.head.weight.numel()
        norm = sum(p.numel() for p in model.final_norm.parameters())
        matrices = sum(p.numel() for p in layer if p.ndim > 1)
        return Sizes(sum(p.numel() for p in layer), matrices, embedding, head, norm)


@dataclass(frozen=True)
class Frozen:
    """Bytes of what is not trained: stored (a layer is read so in a pass), the head moved in a pass, and needed at once
    to dequantise the head."""

    layer: int
    embedding: int
    head: int  # 0 if it is tied to the embedding
    head_passed: int
    tile: int = 0  # of the head, some rows at a time

    @staticmethod
    def of(model: nn.Module, dtype: torch.dtype, trunk_dtype: str, embedding_dtype: str) -> Frozen:
        s, b, V, D = Sizes.of(model), dtype.itemsize, model.vocab_size, model.hidden_size
        layer, tile = s.layer * b, 0
        embedding, head, head_passed = s.embedding * b, s.head * b, V * D * b
        if trunk_dtype != "model":
            shapes = linear_shapes(model)
            stored = sum(stored_bytes(inputs, outputs, trunk_dtype) for outputs, inputs in shapes)
            layer = stored + (s.layer - sum(shape.numel() for shape in shapes)) * b
        if embedding_dtype != "model":
            stored = stored_bytes(D, V, embedding_dtype)
            embedding, head = stored + (s.embedding - V * D) * b, stored if s.head else 0
            values = 4 * 4 + 2 * b  # moved for each: written and read in float32, times their scales, in the dtype
            head_passed = stored + values * V * D
            tile = min(V * D, DEQUANTISED_AT_ONCE) * (DEQUANTISING_BYTES + b)
        return Frozen(layer, embedding, head, head_passed, tile)


def linear_shapes(model: nn.Module) -> list[torch.Size]:
    """Return the shapes [outputs, inputs] of the linear layers of a layer."""
    return [m.weight.shape for m in model.layers[0].modules() if isinstance(m, nn.Linear)]
