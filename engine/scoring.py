"""Where a rollout's score comes from: a reward model of ours, or any Python callable.

Shapes: S sequences.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.errors import UserError
from engine.models import load_model, load_score_weight
from engine.modules import RewardModule
from engine.reward import score_sequences
from engine.runs import read_result

# scorer(batch, prompts, responses) -> float32 [S], the raw scores of whole sequences.
Scorer = Callable[[PackedBatch, Sequence[str], Sequence[str]], Tensor]


def load_scorer(reward: str, tokenizer, dtype: torch.dtype, device: torch.device, tokens_per_microbatch: int) -> Scorer:
    """A reward model's directory, or module:function of (prompt, response) -> float."""
    if ":" in reward and not Path(reward).exists():
        return _callable_scorer(reward, device)
    return _model_scorer(Path(reward), tokenizer, dtype, device, tokens_per_microbatch)


def _model_scorer(
    path: Path, tokenizer, dtype: torch.dtype, device: torch.device, tokens_per_microbatch: int
) -> Scorer:
    """Scores of a reward model, normalised by what its training run measured."""
    from engine.tokenizer import load_tokenizer

    weight_D = load_score_weight(path)
    if weight_D is None:
        raise UserError(f"--reward {path} has no score head: train one with launch/reward.py, or give module:function")
    if load_tokenizer(path).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"--reward {path} has another tokenizer than the policy: train the reward model from the same base model"
        )
    result = read_result(path.parent) or {}
    mean, std = result.get("score_mean", 0.0), result.get("score_std", 1.0)
    module = RewardModule(load_model(path, dtype, device), weight_D).to(device).requires_grad_(False)

    def score(batch: PackedBatch, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return (score_sequences(module, batch, tokens_per_microbatch) - mean) / max(std, 1e-6)

    return score


def _callable_scorer(name: str, device: torch.device) -> Scorer:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--reward {name} cannot be imported ({error}): give a directory or module:function") from error

    def score(batch: PackedBatch, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        scores = [float(function(prompt, response)) for prompt, response in zip(prompts, responses)]
        for value, response in zip(scores, responses):
            if not math.isfinite(value):
                raise UserError(f"--reward {name} gave {value} for {response[:60]!r}: return a finite number")
        return torch.tensor(scores, dtype=torch.float32, device=device)

    return score
