"""Tiny models, requests and trainers for the played GPU, the same on the CPU: the interpreter is slow."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from engine.distributed.world import World
from engine.generation.generate import Request, generate
from engine.generation.sample import Sample
from engine.generation.sampling import Sampling
from engine.models import build_model
from engine.text.encoding import Example, Prompt, RankedExamples
from tests.engine.generation.recorded_steps import CASES
from tests.engine.training import trainers
from tests.engine.training.trainers import EOS, make_trainer, one_rank
from tests.played.device import launch

FAMILIES = ("bloom", "llama", "gemma3")
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "head_dim": 16, "n_head": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
PAGE = tuple(range(1, 67))  # a prompt of more than a page: the page is shared


def small_model(family: str, dtype: torch.dtype = torch.float32, layers: int = 2) -> torch.nn.Module:
    """A model with random weights, of two layers or one."""
    kind, config = CASES[family]
    config = copy.deepcopy(config)
    for name, value in (SMALL | {"n_layer": layers, "num_hidden_layers": layers}).items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    torch.manual_seed(0)
    return kind(config).requires_grad_(False).to(dtype)


def two_prompts(new: int = 6) -> list[Request]:
    """Two samples of a prompt of more than a page, one of a short prompt."""
    return [Request(PAGE, 0, 0, new), Request(PAGE, 0, 1, new), Request((5, 6, 7), 1, 0, new)]


def short_prompt(new: int = 6, least: int = 0) -> list[Request]:
    return [Request((5, 6, 7), 0, i, new, least) for i in range(2)]


def rollout(
    model: torch.nn.Module, requests: list[Request], sampling: Sampling, eos_id: int = 96, **options: Any
) -> list[Sample]:
    """Generate, with a trunk of one layer; EOS is read every fourth step."""
    options = {"num_slots": len(requests), "capture_layer": 1, "steps_a_read": 4, **options}
    return generate(model, requests, sampling, 7, eos_id, **options)


def examples() -> list[Example]:
    """Four sequences of 5 to 8 tokens."""
    return [Example(f"e{i}", (*range(4, 8 + i), EOS), 2) for i in range(4)]


def rankings() -> list[RankedExamples]:
    """Two prompts with three and two responses."""
    made = []
    for i, count in enumerate((3, 2)):
        responses = (Example(f"r{i}", (4, 5 + i, 20 + 3 * k, 21 + k, EOS), 2) for k in range(count))
        made.append(RankedExamples(f"r{i}", tuple(responses), tuple(range(1, count + 1))))
    return made


def prompts() -> list[Prompt]:
    """Four prompts of two to five tokens."""
    tokens = [tuple(range(4, 6 + i)) for i in range(4)]
    return [Prompt(f"p{i}", t, " ".join(f"w{x}" for x in t), "") for i, t in enumerate(tokens)]


DATA = {"sft": examples, "reward": rankings, "dpo": rankings, "ppo": prompts}
CHANGES = {
    "sft": {"batch_size": 2},
    "reward": {"batch_size": 1},
    "dpo": {"batch_size": 1},
    "ppo": {"batch_size": 2, "minibatch_size": 2, "ppo_epochs": 1, "max_new_tokens": 3, "slots": 2},
}


HEADS = {
    "bloom": {"n_layer": 2, "n_head": 2},
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
}


def trained_model(family: str, seed: int = 0) -> torch.nn.Module:
    """The model of `trainer_on`: two layers, for the tiny tokenizer."""
    return build_model(trainers.CONFIGS[family](**HEADS[family]), seed)


@contextmanager
def rank_on(device: torch.device) -> Iterator[World]:
    """The only rank, on this device, which is DeepSpeed's too; a collective is a launch that does nothing."""
    kind = type(get_accelerator())
    kept = {(kind, name): getattr(kind, name) for name in ("device_name", "current_device_name")}
    kept |= {(torch.distributed, name): getattr(torch.distributed, name) for name in ("all_reduce", "broadcast")}
    for name in ("device_name", "current_device_name"):
        setattr(kind, name, lambda self, index=None: str(device))
    for name in ("all_reduce", "broadcast"):
        setattr(torch.distributed, name, _alone)
    try:
        with one_rank() as world:
            yield World(world.rank, world.size, device)
    finally:
        for (owner, name), value in kept.items():
            setattr(owner, name, value)


def _alone(tensor: Tensor, *_: Any, **__: Any) -> None:
    """A collective of one rank."""
    if tensor.is_cuda:
        launch("a collective", lambda: None)


def trainer_on(world: World, stage: str, folder: Path, family: str, dtype: torch.dtype, **changes: Any):
    """A trainer of two steps on a model of two layers, of which the last is trained unless `changes` say more."""
    model = trained_model(family).to(dtype).to(world.device)
    changes = {"max_steps": 2, "top_layers": 1 if stage == "reward" else "1", **CHANGES[stage], **changes}
    records = DATA[stage]()
    heldout = records[:1] if stage != "ppo" or "eval_every" in changes else []
    return make_trainer(stage, world, folder, family, model=model, data=records, heldout=heldout, **changes)
