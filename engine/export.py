"""A trained module back into a Hugging Face directory, whatever ZeRO stage held it."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.distributed import World
from engine.models import save_model
from engine.modules import LanguageModule, RewardModule
from engine.zero import ZeroStep


def save_trained(zero: ZeroStep, path: Path, tokenizer, world: World) -> None:
    """Write the language or reward model inside `zero` to `path`. All ranks call it; the first one writes."""
    module = zero.module
    assert isinstance(module, (LanguageModule, RewardModule))
    state = zero.state_dict()
    if world.is_first:
        with torch.device("meta"):
            model = type(module.model)(module.model.config)
        if module.model.head is None:  # tied, or a reward model loaded without one
            model.head = None
        model.load_state_dict(
            {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}, assign=True
        )
        score = state["score.weight"][0] if isinstance(module, RewardModule) else None
        save_model(model, path, tokenizer, score_weight_D=score)
    world.barrier()
