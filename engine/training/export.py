"""Export a trained module as a Hugging Face directory from any ZeRO stage, and check beforehand that it can be."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from engine.base.errors import UserError
from engine.base.strict_json import reason_of
from engine.distributed.world import World
from engine.models import load_config, save_model
from engine.models.hf import empty_model, write_all_but_weights
from engine.models.quantised import Quantised, stored_weights
from engine.run.model_card import write_card
from engine.text.eos import eos_ids_of
from engine.text.tokenizer import load_tokenizer
from engine.training.lora import LoraModule
from engine.training.zero import ZeroStep


def body_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select a module's body weights and rename them as in the model."""
    body = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
    return {k.removeprefix("model."): v for k, v in body.items()}


def with_trained(model: nn.Module, trained: Mapping[str, Tensor]) -> nn.Module:
    """Return the model with these weights in the place of its own, which ZeRO-3 may hold in parts."""
    with torch.device("meta"):
        whole = type(model)(model.config)
    if model.head is None:  # tied, or a reward model loaded without one
        whole.head = None
    for name, layer in model.named_modules():
        if isinstance(layer, Quantised):
            whole.set_submodule(name, layer)
    frozen = {name: weight.detach() for name, weight in stored_weights(model)}
    whole.load_state_dict(frozen | dict(trained), assign=True)
    return whole


def try_export(
    model: nn.Module,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    tokenizer,
    eos_ids: Sequence[int],
) -> None:
    """UserError if the run could not export its model at the end; called before the first step.

    Writes everything but the weights to a temporary folder, and loads it as any model.
    """
    score_weight_D = torch.zeros(model.hidden_size) if stage == "reward" else None
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            write_all_but_weights(model, folder, tokenizer, score_weight_D, None, eos_ids)
            write_card(folder, stage, settings, inputs, {}, tokenizer, eos_ids)
            config, written = load_config(folder), load_tokenizer(folder)
            empty_model(config, str(folder / "config.json"))
            eos_ids_of(folder, written, config.vocab_size)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            reason = reason_of(error).replace(f"{folder}{os.sep}", "")
            raise UserError(
                f"the model could not be exported ({reason}): correct the config and tokenizer files of --model"
            ) from error


def save_trained(
    zero: ZeroStep,
    model: nn.Module,
    path: Path,
    tokenizer,
    world: World,
    eos_ids: Sequence[int] = (),
    *,
    score_moments: tuple[float, float] | None = None,
) -> None:
    """Write `model` with the weights trained inside `zero` to `path`, low-rank factors merged into them; with a score
    head, as a reward model.

    All ranks call it; the first one writes. eos_ids and score_moments as in save_model.
    """
    state = zero.state_dict()
    if world.is_first:
        merged = zero.module.merged(model, state) if isinstance(zero.module, LoraModule) else None
        whole = with_trained(model, body_weights(state)) if merged is None else model
        score = state["score.weight"][0] if "score.weight" in state else None
        save_model(
            whole, path, tokenizer, score_weight_D=score, score_moments=score_moments, eos_ids=eos_ids, instead=merged
        )
    world.barrier()
