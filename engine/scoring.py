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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.batch import PackedBatch
from engine.encoding import Prompt
from engine.errors import UserError
from engine.models import load_model, load_score_weight
from engine.modules import Policy, RewardModule
from engine.packing import first_fit_decreasing
from engine.reward import score_sequences
from engine.runs import read_result
from engine.tokenizer import encode_response, load_tokenizer
from engine.trunk import Trunk, same_trunk

# scorer(batch, trunk_TD, prompts, responses) -> float32 [S], the raw scores of whole sequences. trunk_TD is the output
# of the trunk that it reads, on the device or the host: what the policy's generation kept, or for a reward model with a
# trunk of its own what `own_trunk` gave, or None.
Scorer = Callable[[PackedBatch, Tensor | None, Sequence[str], Sequence[str]], Tensor]


def load_scorer(
    reward: str, policy: nn.Module, split: int | None, tokenizer, tokens_per_microbatch: int, offload: bool = False
) -> Scorer:
    """A reward model's directory, or module:function of (prompt, response) -> float.

    A reward model with the policy's layers below `split` is taken without them: its top reads the policy's trunk.
    With `offload` one that has its own trunk waits in host memory.
    """
    if _is_callable_name(reward):
        return _callable_scorer(reward, policy.head_weight.device)
    return RewardModelScorer(Path(reward), policy, split, tokenizer, tokens_per_microbatch, offload)


class RewardModelScorer:
    """Scores of a reward model, normalised by what its training run measured."""

    def __init__(
        self, path: Path, policy: nn.Module, split: int | None, tokenizer, tokens_per_microbatch: int, offload: bool
    ):
        weight_D = _score_weight(path)
        if load_tokenizer(path).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"--reward {path} has another tokenizer than the policy: train it from the same base model")
        result = read_result(path.parent) or {}
        self.mean, self.std = result.get("score_mean", 0.0), max(result.get("score_std", 1.0), 1e-6)
        model = load_model(path, policy.head_weight.dtype, "cpu")
        self.shares_trunk = split is not None and same_trunk(model, policy, split)
        if split is not None and not self.shares_trunk:  # as many layers above it as the policy has
            split = max(0, model.num_layers - (policy.num_layers - split))
        self.module = RewardModule(model, weight_D, split).requires_grad_(False)
        self.trunk = None if split is None or self.shares_trunk else Trunk(model, split)
        self.device, self.tokens_per_microbatch = policy.head_weight.device, tokens_per_microbatch
        self.offload = offload and not self.shares_trunk
        if not self.offload:
            self._move(self.device)

    def __call__(
        self, batch: PackedBatch, trunk_TD: Tensor | None, prompts: Sequence[str], responses: Sequence[str]
    ) -> Tensor:
        with self._on_device():
            score_S = score_sequences(self.module, batch, trunk_TD, self.tokens_per_microbatch, self.trunk)
        return (score_S - self.mean) / self.std

    def own_trunk(self, batch: PackedBatch) -> Tensor:
        """[T, D]: the output of a pack of any size at the model's own trunk, a token budget at a time."""
        model = self.trunk.model
        trunk_TD = torch.empty(batch.num_tokens, model.hidden_size, dtype=model.head_weight.dtype, device=self.device)
        with self._on_device():
            for ids in first_fit_decreasing(batch.lengths, self.tokens_per_microbatch):
                trunk_TD[batch.columns(ids)] = self.trunk(batch.select(ids))
        return trunk_TD

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        if self.offload:
            self._move(self.device)
        yield
        if self.offload:
            self._move("cpu")

    def _move(self, device: torch.device | str) -> None:
        self.module.to(device)
        if self.trunk:
            self.trunk.model.to(device)


def has_own_trunk(scorer: Scorer) -> bool:
    """Whether it is a reward model whose lower layers are not the policy's, and are apart from its top."""
    return isinstance(scorer, RewardModelScorer) and scorer.trunk is not None


def start_critic(policy: Policy, scorer: Scorer) -> None:
    """Give the policy a separate critic: the reward model where there is one, else a copy of the policy's body."""
    if isinstance(scorer, RewardModelScorer):
        policy.separate_critic(scorer.module, scorer.mean, scorer.std)
    else:
        policy.separate_critic(None)


def describe(scorer: Scorer) -> str:
    """How it scores, for the header."""
    if not isinstance(scorer, RewardModelScorer):
        return "a Python function"
    if scorer.shares_trunk:
        return "reads the policy's trunk, only its top runs"
    return "a model of its own" + (", in host memory between uses" if scorer.offload else "")


def check_reward(reward: str) -> None:
    """UserError for a --reward that can be seen to be wrong before a policy is there."""
    if _is_callable_name(reward):
        _import(reward)
    else:
        _score_weight(Path(reward))


def try_scorer(scorer: Scorer, policy: nn.Module, split: int | None, prompt: Prompt, tokenizer) -> None:
    """Score an empty response, which any policy may give: a scorer that fails does so before anything is written."""
    tokens = (*prompt.tokens, *encode_response(tokenizer, ""))
    batch = PackedBatch.from_sequences([tokens], policy.head_weight.device)
    reads_policy = split is not None and isinstance(scorer, RewardModelScorer) and scorer.shares_trunk
    trunk_TD = Trunk(policy, split)(batch) if reads_policy else None
    score = float(scorer(batch, trunk_TD, [prompt.text], [""])[0])
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

    def score(batch: PackedBatch, trunk_TD: Tensor | None, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
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
