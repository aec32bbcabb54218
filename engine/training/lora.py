"""Low-rank adaptation (Hu et al. 2021): frozen linear layers, and a product of two small matrices added to each.

The factors are merged into the weights at export, so that a model trained so is a model like any other. Shapes: T
tokens, A selected action columns, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.base.errors import UserError
from engine.base.seeds import derive_seed
from engine.batch import PackedBatch
from engine.models.quantised import QuantisedLinear
from engine.training.modules import body_of
from kernels.linear_logprob import linear_logprob

Linear = nn.Linear | QuantisedLinear
_PREFIX = "factors."


class Factors(nn.Module):
    """scale * up @ down, added to one linear layer's weight; zero before training."""

    def __init__(self, layer: Linear, rank: int, scale: float, generator: torch.Generator, like: Tensor):
        super().__init__()
        self.scale = scale
        down_RI = torch.empty(rank, layer.in_features).uniform_(-1, 1, generator=generator)
        self.down = nn.Parameter((down_RI / math.sqrt(layer.in_features)).to(like))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank).to(like))

    def forward(self, x_TI: Tensor) -> Tensor:
        """Return [T, O], to add to the layer's output."""
        return linear(linear(x_TI, self.down), self.up * self.scale)


class LoraModule(nn.Module):
    """A frozen language model with factors at every linear layer from `split` on (all for None); the head has none.

    Called as a LanguageModule. Its parameters are the factors alone: DeepSpeed, checkpoints and the optimizer see no
    other weight. The layers keep their hooks, so the model computes with the factors as long as this module exists.
    """

    def __init__(
        self, model: nn.Module, split: int | None, rank: int, alpha: float, seed: int, recompute: bool = False
    ):  # fmt: skip
        super().__init__()
        self.scale = alpha / rank
        body = body_of(model, split, recompute).requires_grad_(False)
        self._frozen = (body, model.head_weight)  # a tuple is not registered
        self.factors, like = nn.ModuleDict(), next(model.parameters())
        for name, layer in linear_layers(model, split):
            if rank > min(layer.in_features, layer.out_features):
                raise UserError(
                    f"--lora-rank is {rank}, {name} has {layer.in_features} inputs and {layer.out_features} outputs: "
                    "give a smaller rank"
                )
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
            factors = self.factors[_key(name)] = Factors(layer, rank, self.scale, generator, like)
            layer.register_forward_hook(lambda _, inputs, y, factors=factors: y + factors(*inputs))

    def forward(self, batch: PackedBatch, trunk_TD: Tensor | None, columns_A: Tensor) -> Tensor:
        """Return float32 [A]: the log-probability of the token after each column."""
        body, head_VD = self._frozen
        return linear_logprob(body(batch, trunk_TD, columns_A), head_VD, batch.target_T[columns_A])[0]

    def merged(self, model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        """Return functions that compute the adapted weights with their factors from `state`, by their names in the
        model.

        The product is added in float32 and rounded once to the weight's dtype.
        """
        weights = {}
        for name, layer in linear_layers(model, None):
            up, down = (state.get(f"{_PREFIX}{_key(name)}.{part}") for part in ("up", "down"))
            if up is not None:
                weights[f"{name}.weight"] = partial(self._sum, layer, up, down)
        return weights

    def _sum(self, layer: Linear, up: Tensor, down: Tensor) -> Tensor:
        weight = layer.weight.detach().cpu()
        return (weight.float() + self.scale * (up.float() @ down.float())).to(weight.dtype)


def linear_layers(model: nn.Module, split: int | None) -> Iterator[tuple[str, Linear]]:
    """Yield the linear layers of the blocks from `split` on, by their names in the model."""
    for index in range(split or 0, model.num_layers):
        for name, module in model.layers[index].named_modules():
            if isinstance(module, Linear):
                yield f"layers.{index}.{name}", module


def num_factors(model: nn.Module, split: int | None, rank: int) -> int:
    """Return the number of trained weights."""
    return sum(rank * (layer.in_features + layer.out_features) for _, layer in linear_layers(model, split))


def _key(name: str) -> str:
    return name.replace(".", "_")  # a ModuleDict's names have no dots
