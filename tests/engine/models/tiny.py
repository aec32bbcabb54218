"""Tiny models of every kind: configs, random weights, the same model in transformers, and its files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from engine.batch import PackedBatch
from engine.models import Decoder, load_model

VOCABULARY = 61
SEQUENCES = [[5, 9, 33, 60, 2, 17, 8, 8, 41, 3, 27], [7], [44, 12, 12, 50, 6], [1, 0], list(range(3, 60, 2))]

bloom = partial(transformers.BloomConfig, vocab_size=VOCABULARY, hidden_size=48, n_layer=5)
_sizes = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
llama = partial(transformers.LlamaConfig, **_sizes)
mistral = partial(transformers.MistralConfig, **_sizes)
qwen2 = partial(transformers.Qwen2Config, **_sizes)
qwen3 = partial(transformers.Qwen3Config, **_sizes, head_dim=16)
smollm3 = partial(transformers.SmolLM3Config, **_sizes, no_rope_layer_interval=2, pad_token_id=0)
# Heads of their own size, a scale that is not 1/sqrt(K), two rotary bases, and a window shorter than most sequences.
gemma3 = partial(
    transformers.Gemma3TextConfig,
    **_sizes,
    head_dim=16,
    query_pre_attn_scalar=24,
    sliding_window=6,
    sliding_window_pattern=3,
    rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
)
cohere2 = partial(transformers.Cohere2Config, **_sizes, sliding_window=6, sliding_window_pattern=3, logit_scale=0.3)
apertus = partial(transformers.ApertusConfig, **_sizes)

# With this short original context each band of llama3 (kept, blended, slowed) has frequencies.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

CONFIGS = {
    "bloom, 8 heads": partial(bloom, n_head=8),
    "bloom, 6 heads": partial(bloom, n_head=6),
    "bloom, residual from the norm": partial(bloom, n_head=8, apply_residual_connection_post_layernorm=True),
    "bloom, untied": partial(bloom, n_head=8, tie_word_embeddings=False),
    "llama, grouped heads": llama,
    "llama, tied": partial(llama, tie_word_embeddings=True),
    "llama, no groups": partial(llama, num_key_value_heads=6),
    "llama, linear scaling": partial(
        llama, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 700.0}
    ),
    "llama, llama3 scaling": partial(llama, rope_parameters=LLAMA3),
    "llama, head size of its own": partial(llama, head_dim=20),
    "llama, biases": partial(llama, attention_bias=True, mlp_bias=True),
    "llama, yarn scaling": partial(llama, rope_parameters=YARN),
    "llama, yarn scaling with its own amplitude": partial(
        llama, rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 4.0, "truncate": False}
    ),
    "llama, dynamic scaling": partial(
        llama, rope_parameters={"rope_type": "dynamic", "factor": 3.0, "rope_theta": 700.0}
    ),
    "mistral": partial(mistral, sliding_window=64),
    "mistral, short window": partial(mistral, sliding_window=6),
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen2, windows above": partial(qwen2, use_sliding_window=True, sliding_window=6, max_window_layers=2),
    "qwen3, biases, tied": partial(qwen3, attention_bias=True, tie_word_embeddings=True),
    "smollm3": smollm3,
    "gemma3": gemma3,
    "gemma3, untied": partial(gemma3, tie_word_embeddings=False),
    "cohere2": cohere2,
    "cohere2, biases": partial(cohere2, attention_bias=True),
    "apertus": apertus,
}
ONE_OF_EACH = {
    "bloom": CONFIGS["bloom, 6 heads"],
    "llama": CONFIGS["llama, biases"],
    "gemma3": gemma3,
    "cohere2": cohere2,
    "apertus": apertus,
}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Move every matrix, norm and bias away from its initial value, so that a missing term changes the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed" in name and parameter.ndim == 2:
                parameter.copy_(noise)
            elif parameter.ndim == 2:
                parameter.copy_(0.12 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "alpha" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(1 + 0.3 * noise)


def peer(config: PretrainedConfig, seed: int = 0) -> torch.nn.Module:
    """Return the same model in transformers, with random weights."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model, seed)
    return model


def ours(model: torch.nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Save a transformers model and load it with load_model."""
    model.save_pretrained(path)
    return load_model(path, dtype)


def logits_of(model: Decoder, batch: PackedBatch, attend=None) -> Tensor:
    h_TD = model.run(model.embed(batch), batch, 0, model.num_layers, attend)
    return model.norm(h_TD) @ model.head_weight.T


@torch.no_grad()
def peer_logits(model: torch.nn.Module, sequences: list[list[int]]) -> Tensor:
    """Return the logits of transformers, one sequence at a time, concatenated."""
    return torch.cat([model(torch.tensor([s])).logits[0] for s in sequences])


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Assert that the largest difference, relative to the largest expected value, is at most `relative`."""
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= relative, f"relative error {error:.2e}, allowed {relative:.0e}"


def weights_of(path: Path) -> dict[str, Tensor]:
    return load_file(path / "model.safetensors")


def rewrite(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def rewrite_as_bin(path: Path, legacy: bool = False) -> None:
    tensors = weights_of(path)
    (path / "model.safetensors").unlink()
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)


def rewrite_as_bin_shards(path: Path) -> None:
    tensors = weights_of(path)
    (path / "model.safetensors").unlink()
    weight_map = {name: f"pytorch_model-{1 + i % 2:05d}-of-00002.bin" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == file}, path / file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
