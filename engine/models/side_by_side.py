"""Weights of several linear layers side by side in memory, so that one product reads them all.

The layers stay separate: each has its own parameter, a view of the common memory. Whatever gives a parameter other
memory (an optimizer, a move, a gather) separates them again, and their products too: `joined` looks at the addresses
whenever it is called, so it never returns old values. Shapes: D inputs, N outputs of all layers together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.models.quantised import Quantised, weight_of
from kernels.common.codes import Codes

GROUPS = (("q", "k", "v"), ("gate", "up"))  # of a block's linear layers: those that read the same rows


def lay_side_by_side(model: nn.Module) -> None:
    """Move the weights and biases of each block's groups together; one group at a time exists twice."""
    for block in model.layers:
        for names in GROUPS:
            layers = [getattr(block, name, None) for name in names]
            if all(layers):
                kinds = ("codes", "scales", "bias") if isinstance(layers[0], Quantised) else ("weight", "bias")
                for kind in kinds:
                    _lay([getattr(layer, kind) for layer in layers])


def _lay(tensors: Sequence[Tensor | None]) -> None:
    if any(x is None for x in tensors):
        return
    parts = torch.cat([x.detach() for x in tensors]).split([len(x) for x in tensors])
    for x, part in zip(tensors, parts, strict=True):
        x.data = part


def joined(layers: Sequence[nn.Module]) -> tuple[Tensor | Codes, Tensor | None] | None:
    """Return the layers' weights as one [N, D], and their biases [N] or None, without a copy.

    None where they do not lie side by side.
    """
    weights = [weight_of(layer) for layer in layers]
    biases = [layer.bias for layer in layers]
    bias_N = None if biases[0] is None else _joined(biases)
    if bias_N is None and any(bias is not None for bias in biases):
        return None
    if isinstance(weights[0], Codes):
        codes, scale_NG = _joined([w.codes for w in weights]), _joined([w.scale_NG for w in weights])
        return (
            None if codes is None or scale_NG is None else (weights[0]._replace(codes=codes, scale_NG=scale_NG), bias_N)
        )
    weight_ND = _joined(weights)
    return None if weight_ND is None else (weight_ND, bias_N)


def _joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the tensors as one, along the first dimension, if they follow each other in the same memory."""
    first, outputs = tensors[0], 0
    for x in tensors:
        if (
            not x.is_contiguous()
            or x.shape[1:] != first.shape[1:]
            or x.dtype != first.dtype
            or x.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or x.data_ptr() != first.data_ptr() + outputs * first[:1].nbytes
        ):
            return None
        outputs += len(x)
    return first.detach().as_strided((outputs, *first.shape[1:]), first.stride(), first.storage_offset())
