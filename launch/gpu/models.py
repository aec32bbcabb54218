"""Models of 7B shape with random weights, made on the device, and what a step of theirs must at least move."""

from __future__ import annotations

import torch
from transformers import BloomConfig, LlamaConfig, PretrainedConfig

from engine.models.decoder import Decoder
from engine.models.hf import empty_model
from engine.models.side_by_side import lay_side_by_side
from launch.bench.rollout_floor import ModelCost
from launch.gpu.lab import Lab
from launch.plan import config_of

NAMES = {"bloom": "bloom-7b1", "llama": "llama-7b"}


def shape(lab: Lab, family: str) -> PretrainedConfig:
    """Return the config of BLOOM-7B1 or LLaMA-7B; in a fake run, one that is tiny."""
    if not lab.fake:
        config = config_of(NAMES[family])
        if family == "llama":
            config.max_position_embeddings = 4096
        return config
    if family == "bloom":
        return BloomConfig(vocab_size=160, hidden_size=64, n_layer=6, n_head=4)
    return LlamaConfig(
        vocab_size=160, hidden_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=80, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip


def label(lab: Lab, family: str) -> str:
    """Return the name of the shape in the table."""
    return f"{family}, {lab.pick('7B', 'tiny')}"


def dtype(lab: Lab) -> torch.dtype:
    """Return bfloat16; float32 in a fake run, where a CPU without its instructions would be slow."""
    return lab.pick(torch.bfloat16, torch.float32)


def on_meta(lab: Lab, family: str) -> Decoder:
    """Return the model without memory, for sizes."""
    return empty_model(shape(lab, family), family).to(dtype(lab))


def random_model(lab: Lab, family: str, seed: int = 0) -> Decoder:
    """Return the model, made on the device: matrices normal(0, 0.02), norms 1, biases 0."""
    model = on_meta(lab, family).to_empty(device=lab.device)
    generator = torch.Generator(lab.device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    lay_side_by_side(model)  # as load_model does on a GPU
    return model.requires_grad_(False)


def weight_bytes(cost: ModelCost) -> int:
    """Return the bytes that every decode step reads: all layers and the head."""
    return cost.layer_bytes + cost.head_bytes


def decode_floor_s(lab: Lab, cost: ModelCost, rows: int, positions: float) -> float | None:
    """Return the lower bound of a step of so many rows that read so many cache positions in all, seconds."""
    flops = (cost.layer_flops + cost.head_flops) * rows + cost.position_flops * positions
    return lab.floor_s(weight_bytes(cost) + cost.position_bytes * positions, flops)
