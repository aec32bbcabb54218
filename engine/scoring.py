"""Where a rollout's score comes from: a reward model of ours, or any Python callable.

Shapes: S sequences.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.encoding import Prompt
from engine.errors import UserError
from engine.models import load_model, load_score_weight
from engine.modules import RewardModule
from engine.reward import score_sequences
from engine.runs import read_result
from engine.tokenizer import encode_response, load_tokenizer

# scorer(batch, prompts, responses) -> float32 [S], the raw scores of whole sequences.
Scorer = Callable[[PackedBatch, Sequence[str], Sequence[str]], Tensor]


def load_scorer(reward: str, tokenizer, dtype: torch.dtype, device: torch.device, tokens_per_microbatch: int) -> Scorer:
    """A reward model's directory, or module:function of (prompt, response) -> float."""
    if _is_callable_name(reward):
        return _callable_scorer(reward, device)
    return _model_scorer(Path(reward), tokenizer, dtype, device, tokens_per_microbatch)


def check_reward(reward: str) -> None:
    """UserError for a --reward that can be seen to be wrong before a policy is there."""
    if _is_callable_name(reward):
        _import(reward)
    else:
        _score_weight(Path(reward))


def try_scorer(scorer: Scorer, prompt: Prompt, tokenizer, device: torch.device) -> None:
    """Score an empty response, which any policy may give: a scorer that fails does so before anything is written."""
    batch = PackedBatch.from_sequences([(*prompt.tokens, *encode_response(tokenizer, ""))], device)
    score = float(scorer(batch, [prompt.text], [""])[0])
    if not math.isfinite(score):
        raise UserError(
            f"the reward model scores prompt {prompt.id} as {score}: its weights are damaged, train it anew"
        )


def _is_callable_name(reward: str) -> bool:
    return ":" in reward and not Path(reward).exists()


def _score_weight(path: Path) -> Tensor:
    weight_D = load_score_weight(path)
    if weight_D is None:
        raise UserError(f"--reward {path} has no score head: train one with launch/reward.py, or give module:function")
    return weight_D


def _model_scorer(
    path: Path, tokenizer, dtype: torch.dtype, device: torch.device, tokens_per_microbatch: int
) -> Scorer:
    """Scores of a reward model, normalised by what its training run measured."""
    weight_D = _score_weight(path)
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
    function = _import(name)

    def score_one(prompt: str, response: str) -> float:
        value = function(prompt, response)
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"--reward {name} gave {value!r} for {response[:60]!r}: return a finite number")
        return score

    def score(batch: PackedBatch, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        scores = [score_one(prompt, response) for prompt, response in zip(prompts, responses)]
        return torch.tensor(scores, dtype=torch.float32, device=device)

    return score


def _import(name: str) -> Callable[[str, str], float]:
    """The function that module:function names."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a launcher's path starts with its own folder, the user's module lies here
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        if not callable(function):
            raise TypeError(f"it is {function!r:.60}")
        with contextlib.suppress(ValueError):  # compiled functions may not tell their signature
            inspect.signature(function).bind("prompt", "response")
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"--reward {name} is no function of (prompt, response) that can be imported ({error}): "
            "give a reward model's directory or module:function"
        ) from error
    return function
