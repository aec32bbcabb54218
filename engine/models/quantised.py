"""Frozen linear layers, embedding and head in 8 or 4 bits: what a stored weight is worth, and what computes with it.

A weight [N, I] is cut into groups of 32 along I, each with one scale: the group's largest magnitude over 127 or 7,
rounded to bfloat16. A code is the nearest integer to weight / scale (127 for what a scale rounded down puts above it:
an error of up to one scale there, half a scale elsewhere). The value of a weight is code * scale, rounded to
the model's dtype: rollouts, scores, updates and the exported model all compute with this value. Values quantise to
themselves, so a reward model exported from a quantised trunk still shares the trunk of a policy of the same base.
In 4 bits, the better of two scales per group (over 7, and over 8 with codes from -8) has a fifth less squared error and
costs SmolLM2 more: 0.18 ± 0.03 instead of 0.10 ± 0.02 bits per byte of Nepali. It cuts off the largest weights.
Shapes: T tokens, N outputs, I inputs, G groups, C bytes of codes in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from engine.base.errors import UserError
from kernels import coded_linear
from kernels.common.codes import GROUP, Codes

LARGEST = {"int8": 127, "int4": 7}  # largest code of each dtype; the smallest is its negative
QUANTISED_AT_ONCE = 1 << 15  # weights: what is computed of them stays in the cache
TILE_ROWS = 1024  # output rows dequantised at once


def quantise(weight_NI: Tensor, bits: str) -> tuple[Tensor, Tensor]:
    """Return (codes, scales bfloat16 [N, G]). int8: codes int8 [N, 32 G]; int4: uint8 [N, 16 G], the even input in the
    low four bits.

    The last group is filled up with zeros. UserError for a weight that is not finite.
    """
    rows = max(1, QUANTISED_AT_ONCE // weight_NI.shape[1])
    parts = [_quantise_rows(part, bits) for part in weight_NI.split(rows)]
    codes, scales = zip(*parts)
    return torch.cat(codes), torch.cat(scales)


def _quantise_rows(weight_NI: Tensor, bits: str) -> tuple[Tensor, Tensor]:
    if not torch.isfinite(weight_NI).all():
        raise UserError(
            "the model has a weight that is not finite: leave out --trunk-dtype and --embedding-dtype, or correct the "
            "model"
        )
    weight_NI = pad(weight_NI.float(), (0, -weight_NI.shape[1] % GROUP))
    weight_NGJ, largest = weight_NI.unflatten(1, (-1, GROUP)), LARGEST[bits]
    scale_NG = (weight_NGJ.abs().amax(2) / largest).bfloat16()
    # Computed a second time, from the largest value as bfloat16 stores it: then values that are quantised give the
    # same scale.
    scale_NG = ((scale_NG.float() * largest).bfloat16().float() / largest).bfloat16()
    divisor_NG = scale_NG.float().masked_fill(scale_NG == 0, 1.0)
    code_NI = (weight_NGJ / divisor_NG[..., None]).round().clamp(-largest, largest).to(torch.int8).flatten(1)
    if bits == "int8":
        return code_NI, scale_NG
    low, high = (code_NI[:, start::2].view(torch.uint8) & 15 for start in (0, 1))
    return low | high << 4, scale_NG


class Quantised(nn.Module):
    """A frozen weight [N, I] as codes and scales. They are buffers: nothing trains or counts them."""

    def __init__(self, weight_NI: Tensor, bits: str):
        super().__init__()
        self.out_features, self.in_features = weight_NI.shape
        self.dtype = weight_NI.dtype
        codes, scales = quantise(weight_NI.detach(), bits)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def stored(self) -> Codes:
        """The weight as it is stored."""
        return Codes(self.codes, self.scales, self.in_features, self.dtype)

    @property
    def weight(self) -> Tensor:
        """The values of the whole weight [N, I], computed at each read."""
        return torch.cat(list(self.tiles()))

    def tiles(self) -> Iterator[Tensor]:
        """Yield the values of 1,024 rows of the weight at a time."""
        for start in range(0, self.out_features, TILE_ROWS):
            yield self.stored.rows(slice(start, start + TILE_ROWS)).values()


class QuantisedEmbedding(Quantised):
    """A frozen embedding, and the head where it is tied."""

    def forward(self, tokens_T: Tensor) -> Tensor:
        """Return the rows of the tokens [T, I]; no other row is dequantised."""
        return self.stored.rows(tokens_T).values()


class QuantisedLinear(Quantised):
    """A frozen linear layer."""

    def __init__(self, weight_NI: Tensor, bias: nn.Parameter | None, bits: str):
        super().__init__(weight_NI, bits)
        self.register_parameter("bias", bias)

    def forward(self, x_TI: Tensor) -> Tensor:
        """Return x @ weight.T + bias [T, N]. Dequantises in registers on a GPU, else 1,024 output rows at a time."""
        return _Product.apply(x_TI, self)


class _Product(torch.autograd.Function):
    """The product. Its backward dequantises for itself: autograd would keep the values of all layers until then."""

    @staticmethod
    def forward(ctx, x_TI: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        if coded_linear.fits(x_TI):
            return coded_linear.coded_linear(x_TI, weight_of(layer), layer.bias)
        biases = repeat(None) if layer.bias is None else layer.bias.split(TILE_ROWS)
        parts = [linear(x_TI, weight_NI, bias_N) for weight_NI, bias_N in zip(layer.tiles(), biases)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx, grad_TN: Tensor) -> tuple[Tensor, None]:
        if coded_linear.fits(grad_TN):
            return coded_linear.coded_linear_gradient(grad_TN, weight_of(ctx.layer)), None
        return grad_TN @ ctx.layer.weight, None


def weight_of(layer: nn.Module) -> Tensor | Codes:
    """Return the weight of a linear layer or an embedding as it is stored."""
    return layer.stored if isinstance(layer, Quantised) else layer.weight


def tensors_of(weight: Tensor | Codes) -> tuple[Tensor, ...]:
    """Return the tensors that a weight is stored in."""
    return (weight.codes, weight.scale_NG) if isinstance(weight, Codes) else (weight,)


def replace(model: nn.Module, name: str, weight_NI: Tensor, bits: str) -> None:
    """Put codes of this weight in the place of the linear layer or embedding `name`; a bias stays."""
    layer = model.get_submodule(name)
    is_embedding = isinstance(layer, nn.Embedding)
    codes = QuantisedEmbedding(weight_NI, bits) if is_embedding else QuantisedLinear(weight_NI, layer.bias, bits)
    model.set_submodule(name, codes)


def linears_below(model: nn.Module, split: int) -> list[str]:
    """Return the names of the linear layers in layers 0 to split-1."""
    below = ((f"layers.{i}", model.layers[i]) for i in range(split))
    return [f"{layer}.{n}" for layer, block in below for n, m in block.named_modules() if isinstance(m, nn.Linear)]


def quantised_names(model: nn.Module, split: int, trunk_dtype: str, embedding_dtype: str = "model") -> dict[str, str]:
    """Return the names of what is stored in 8 or 4 bits, each with its dtype.

    They are the linear layers below `split` in trunk_dtype, the embedding and the head in embedding_dtype; "model"
    leaves weights as they are. The model remembers both dtypes.
    """
    model.trunk_dtype, model.embedding_dtype = trunk_dtype, embedding_dtype
    names = dict.fromkeys(linears_below(model, split), trunk_dtype)
    names |= dict.fromkeys(["embedding"] if model.head is None else ["embedding", "head"], embedding_dtype)
    return {name: bits for name, bits in names.items() if bits != "model"}


def quantise_trunk(model: nn.Module, split: int, trunk_dtype: str, embedding_dtype: str = "model") -> None:
    """Quantise a loaded model's weights of `quantised_names`, in place."""
    for name, bits in quantised_names(model, split, trunk_dtype, embedding_dtype).items():
        replace(model, name, model.get_submodule(name).weight.data, bits)


def stored_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights as they are stored: parameters, then codes and scales."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        if isinstance(module, Quantised):
            yield from ((f"{name}.codes", module.codes), (f"{name}.scales", module.scales))


class Weight(NamedTuple):
    """A weight of an ordinary model: its shape and dtype, and a function that returns it."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def valued_weights(model: nn.Module, instead: Mapping[str, Callable[[], Tensor]] | None = None) -> dict[str, Weight]:
    """Return all weights by the names of an ordinary model; `instead` computes some of them by their names.

    Quantised ones are their values, dequantised when they are read.
    """
    given = instead or {}
    weights = {n: Weight(p.shape, p.dtype, given.get(n, lambda p=p: p.detach())) for n, p in model.named_parameters()}
    for name, layer in model.named_modules():
        if isinstance(layer, Quantised):
            shape, name = torch.Size((layer.out_features, layer.in_features)), f"{name}.weight"
            weights[name] = Weight(shape, layer.dtype, given.get(name, lambda layer=layer: layer.weight))
    return weights


def stored_bytes(inputs: int, outputs: int, bits: str) -> int:
    """Return the bytes of codes and scales of a weight [outputs, inputs]."""
    code_bytes = {"int8": GROUP, "int4": GROUP // 2}[bits]
    return outputs * -(-inputs // GROUP) * (code_bytes + 2)


def num_weights(model: nn.Module) -> int:
    """Return the number of weights, each quantised one counted once."""
    quantised = (m for m in model.modules() if isinstance(m, Quantised))
    return sum(p.numel() for p in model.parameters()) + sum(m.in_features * m.out_features for m in quantised)
