"""A trained module back into a Hugging Face directory, whatever ZeRO stage held it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.distributed import World
from engine.models import save_model
from engine.zero import ZeroStep


def body_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a module's weights those of its body, under the names that the model gives them."""
    body = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
    return {k.removeprefix("model."): v for k, v in body.items()}


def save_trained(
    zero: ZeroStep,
    model: nn.Module,
    path: Path,
    tokenizer,
    world: World,
    score_moments: tuple[float, float] | None = None,
) -> None:
    """Write `model`, whose body or top was trained inside `zero`, to `path`: a reward model when there is a score head.

    `score_moments` are the mean and deviation of its scores. All ranks call it; the first one writes.
    """
    state = zero.state_dict()
    if world.is_first:
        with torch.device("meta"):
            whole = type(model)(model.config)
        if model.head is None:  # tied, or a reward model loaded without one
            whole.head = None
        frozen = {name: weight.detach() for name, weight in model.named_parameters()}
        whole.load_state_dict(frozen | body_weights(state), assign=True)
        score = state["score.weight"][0] if "score.weight" in state else None
        save_model(whole, path, tokenizer, score_weight_D=score, score_moments=score_moments)
    world.barrier()
