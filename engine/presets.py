"""Presets of each stage: default, okapi (the paper), and demo (small, for the embedded tasks)."""

from __future__ import annotations

from typing import Any

Preset = dict[str, Any]


def okapi(stage: str) -> Preset:
    """Return the settings of Lai et al. 2023 (arXiv 2307.16039), or of its published code where it is silent.

    It has no DPO: these are the settings of Rafailov et al. 2023 (arXiv 2305.18290), with AdamW for their RMSprop. It
    has no continued pretraining either: these are ours.
    """
    adam = {"beta1": 0.9, "beta2": 0.95}
    return {
        "sft": {
            "lr": 2e-5, "schedule": "cosine", "max_warmup_steps": 300, "weight_decay": 0.05, **adam,
            "batch_size": 128, "epochs": 3, "max_length": 512, "loss_on": "all",
        },
        "reward": {
            "lr": 3e-5, "schedule": "cosine", "max_warmup_steps": 50, "weight_decay": 1e-4, "beta1": 0.9,
            "beta2": 0.999, "batch_size": 64, "epochs": 3, "max_length": 768,
        },
        "dpo": {
            "lr": 1e-6, "schedule": "constant", "max_warmup_steps": 150, "weight_decay": 0.0, "beta1": 0.9,
            "beta2": 0.999, "batch_size": 64, "epochs": 1, "max_length": 768, "beta": 0.1,
        },
        "ppo": {
            "lr": 1e-6, "schedule": "constant", "max_warmup_steps": 0, "weight_decay": 1e-6, **adam,
            "batch_size": 128, "epochs": 5, "max_length": 512, "max_new_tokens": 256, "ppo_epochs": 4,
            "top_layers": "4", "kl_coef": 0.1, "kl_controller": "adaptive", "kl_target": 6.0, "kl_horizon": 10_000.0,
            "clip": 0.2, "value_clip": 0.2, "vf_coef": 1.0, "temperature": 1.0, "top_p": 1.0,
        },
        "pretrain": {
            "lr": 5e-5, "schedule": "wsd", "max_warmup_steps": 100, "weight_decay": 0.1, **adam,
            "batch_size": 64, "epochs": 1, "max_length": 2048,
        },
    }[stage]  # fmt: skip


def default(stage: str) -> Preset:
    """Return the paper's settings, with the loss on responses only and warm-ups for smaller data."""
    changes: dict[str, Preset] = {"sft": {"loss_on": "response", "max_warmup_steps": 50}}
    return {**okapi(stage), **changes.get(stage, {})}


def demo(stage: str) -> Preset:
    """Return settings for a model of a few million parameters on the embedded tasks: minutes on two CPU cores."""
    changes: dict[str, Preset] = {
        "sft": {
            "lr": 3e-3, "max_warmup_steps": 20, "batch_size": 64, "epochs": 1, "max_steps": 500, "max_length": 192,
            "loss_on": "response", "template": "plain", "exact_match": True,
        },
        "reward": {
            "lr": 5e-4, "max_warmup_steps": 20, "batch_size": 32, "epochs": 1, "max_steps": 300, "max_length": 192,
            "template": "plain",
        },
        "dpo": {
            "lr": 1e-4, "max_warmup_steps": 20, "batch_size": 32, "epochs": 1, "max_steps": 300, "max_length": 192,
            "template": "plain",
        },
        "ppo": {
            "lr": 3e-4, "batch_size": 256, "minibatch_size": 64, "epochs": 1, "max_steps": 60, "max_length": 192,
            "max_new_tokens": 48, "ppo_epochs": 2, "kl_coef": 0.3, "kl_controller": "fixed", "template": "plain",
            "slots": 256, "eval_samples": 4,
        },
        "pretrain": {"lr": 3e-3, "max_warmup_steps": 20, "batch_size": 32, "max_steps": 200, "max_length": 192},
    }  # fmt: skip
    return {**default(stage), **changes[stage]}


def presets(stage: str) -> dict[str, Preset]:
    """Return {name: preset} of a stage."""
    return {preset.__name__: preset(stage) for preset in (default, okapi, demo)}
