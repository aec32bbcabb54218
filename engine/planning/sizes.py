"""Sizes of a model's parts: numbers of weights, and bytes of what is not trained, in any number of bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from engine.models.quantised import DEQUANTISING_BYTES, TILE_ROWS, stored_bytes
from kernels.linear_logprob import DEQUANTISED_AT_ONCE


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
    """Bytes of what is not trained: stored, moved in a pass, and needed at once to dequantise."""

    layer: int
    passed: int  # a layer
    embedding: int
    head: int  # 0 if it is tied to the embedding
    head_passed: int
    tile: int = 0  # of a weight, some rows at a time
    weight: int = 0  # of the values of a layer's largest weight

    @staticmethod
    def of(model: nn.Module, dtype: torch.dtype, trunk_dtype: str, embedding_dtype: str) -> Frozen:
        s, b, V, D = Sizes.of(model), dtype.itemsize, model.vocab_size, model.hidden_size
        layer = passed = s.layer * b
        embedding, head, head_passed = s.embedding * b, s.head * b, V * D * b
        tiles, weight = [0], 0
        values = 4 * 4 + 2 * b  # bytes moved for each: written and read in float32, times their scales, in the dtype
        if trunk_dtype != "model":
            shapes = [m.weight.shape for m in model.layers[0].modules() if isinstance(m, nn.Linear)]
            inside = sum(shape.numel() for shape in shapes)
            stored = sum(stored_bytes(inputs, outputs, trunk_dtype) for outputs, inputs in shapes)
            layer = stored + (s.layer - inside) * b
            passed = layer + values * inside
            tiles += [min(outputs, TILE_ROWS) * inputs * (DEQUANTISING_BYTES + b) for outputs, inputs in shapes]
            weight = max(shape.numel() for shape in shapes) * b
        if embedding_dtype != "model":
            stored = stored_bytes(D, V, embedding_dtype)
            embedding, head = stored + (s.embedding - V * D) * b, stored if s.head else 0
            head_passed = stored + values * V * D
            tiles.append(min(V * D, DEQUANTISED_AT_ONCE) * (DEQUANTISING_BYTES + b))
        return Frozen(layer, passed, embedding, head, head_passed, max(tiles), weight)
