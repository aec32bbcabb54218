"""The weighted mean of models with equal configs (Wortsman et al. 2022), a tensor at a time from disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.base.errors import UserError
from engine.models.config_rules import computed_from
from engine.models.decoder import Decoder
from engine.models.hf import check_stored, empty_model, load_config
from engine.models.names import LM_HEAD, SCORE, TABLES, match, written_name
from engine.models.weight_files import StoredTensor, read_weights


def open_merge(paths: Sequence[Path], shares: Sequence[float]) -> tuple[Decoder, Callable[[str], Tensor]]:
    """(the model without weights, in the dtype of its tensors; a function that reads the mean of a weight by the name
    it is written under).

    The mean is the sum of share * tensor, in float32 in the order of the models, rounded once to their dtype. The
    shares add up to 1. UserError for models that compute differently and, when a tensor is read, for other dtypes.
    """
    configs = [load_config(path) for path in paths]
    first, *others = [computed_from(config) for config in configs]
    for path, other in zip(paths[1:], others):
        if odd := [name for name in first.keys() | other.keys() if first.get(name) != other.get(name)]:
            name = min(odd)
            raise UserError(
                f"{path} has {name} {other.get(name)!r:.60} and {paths[0]} {first.get(name)!r:.60}: "
                "only models with equal configs can be merged"
            )
    model = empty_model(configs[0], str(paths[0] / "config.json"))
    table = TABLES[configs[0].model_type]
    ours = {written_name(table, name): name for name, _ in model.named_parameters()}
    stored = [_weights_of(path, model) for path in paths]

    def read(name: str) -> Tensor:
        mean, dtype = None, None
        for path, tensors, share in zip(paths, stored, shares):
            tensor = tensors[ours[name]].read()
            if dtype not in (None, tensor.dtype):
                raise UserError(
                    f"{path} has {name} in {_short(tensor.dtype)} and {paths[0]} in {_short(dtype)}: "
                    "convert one of them to the other's dtype first"
                )
            dtype = tensor.dtype
            part = tensor.float() * share
            mean = part if mean is None else mean.add_(part)
        return mean.to(dtype)

    return model.to(stored[0]["embedding.weight"].read().dtype), read


def _weights_of(path: Path, model: Decoder) -> dict[str, StoredTensor]:
    """Return the stored tensors of a language model by our names."""
    stored = read_weights(path)
    if SCORE in stored and LM_HEAD not in stored:
        raise UserError(f"{path} is a reward model (it has a score head): give language models")
    names = match(str(path), model, {name: tensor.shape for name, tensor in stored.items()})
    check_stored(path, model.config, stored, names)
    return {ours: stored[name] for ours, name in names.items()}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
