"""The scores of rollouts by one reward: one of our reward models, or any Python function.

Shapes: S sequences.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.base.errors import UserError
from engine.base.imported import has_parameter, import_function
from engine.base.strict_json import is_number
from engine.batch import PackedBatch, on_device
from engine.models import load_config, load_model, load_score_weight
from engine.packing import pack_together
from engine.settings import is_function_name
from engine.text.encoding import Prompt
from engine.text.tokenizer import encode_response, load_tokenizer
from engine.training.modules import RewardModule
from engine.training.reward import score_sequences
from engine.training.sharded import HostWeights
from engine.training.trunk import Trunk, same_trunk

NORMALISED_CLIP = 10.0  # standard deviations: default clip of normalised scores
OUTPUT = "output"  # the third parameter of a reward function, if it has one
SMALLEST_STD = 1e-6  # relative to max(1, |mean|): below it, scores differ only by rounding


def load_scorer(
    reward: str, policy: nn.Module, split: int | None, tokenizer, tokens_per_microbatch: int, offload: bool = False
) -> OneScorer:
    """Load a reward model's directory, or module:function of (prompt, response) -> float, with or without an output.

    A reward model with the policy's layers below `split` keeps only its top, which reads the policy's trunk. With
    `offload`, a reward model with its own trunk stays in host memory between uses.
    """
    if is_function_name(reward):
        return FunctionScorer(reward, policy.head_weight.device)
    return RewardModelScorer(Path(reward), policy, split, tokenizer, tokens_per_microbatch, offload)


class _Alone:
    """What both kinds of scorers have."""

    def measures(self, score_S: Tensor) -> dict[str, list[float]]:
        """Return what the scorer gave as a held-out measure: {"score": one number per sequence}."""
        return {"score": score_S.tolist()}


class FunctionScorer(_Alone):
    """Scores of a Python function of (prompt, response) or of (prompt, response, output), unchanged.

    `output` is the answer in the prompt's record.
    """

    note: str | None = None
    shares_trunk, trunk = False, None  # it reads text

    def __init__(self, name: str, device: torch.device):
        self.name, self.function, self.device = name, _import(name), device
        self.wants_output = has_parameter(self.function, OUTPUT)

    def __call__(
        self,
        batch: PackedBatch,
        trunk_TD: Tensor | None,
        prompts: Sequence[str],
        responses: Sequence[str],
        outputs: Sequence[str],
        own_trunk_TD: Tensor | None = None,
    ) -> Tensor:
        """Return float32 [S], the score of each sequence."""
        scores = [self._one(*texts) for texts in zip(prompts, responses, outputs, strict=True)]
        return on_device(scores, torch.float32, self.device)

    def _one(self, prompt: str, response: str, output: str) -> float:
        value = self.function(prompt, response, **({OUTPUT: output} if self.wants_output else {}))
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            hint = ", or give its settings in brackets" if callable(value) else ""
            raise UserError(f"--reward {self.name} gave {value!r} for {response[:60]!r}: return a finite number{hint}")
        return score

    def clip(self, asked: float | None) -> float | None:
        """Return the clip of scores: --score-clip, because the range of a function is not known."""
        return asked

    def __str__(self) -> str:
        return "a Python function"


class RewardModelScorer(_Alone):
    """Scores of a reward model, normalised by the mean and standard deviation in its config.json."""

    wants_output = False

    def __init__(
        self, path: Path, policy: nn.Module, split: int | None, tokenizer, tokens_per_microbatch: int, offload: bool
    ):
        weight_D = _score_weight(path)
        if load_tokenizer(path).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"--reward {path} has another tokenizer than the policy: train it from the same base model")
        moments, self.note = score_moments(path), None
        if moments is None:
            self.note = (
                f"note: {path / 'config.json'} has no score_mean and score_std: its scores are used as they are, "
                "neither normalised nor clipped (launch/reward.py writes both, there and into its run's result.json)"
            )
        self.normalises = moments is not None
        self.mean, self.std = moments or (0.0, 1.0)
        trunk = 0 if split is None else max(0, load_config(path).num_hidden_layers - (policy.num_layers - split))
        model = load_model(path, policy.head_weight.dtype, "cpu", policy.trunk_dtype, trunk, policy.embedding_dtype)
        self.shares_trunk = split is not None and same_trunk(model, policy, split)
        if split is not None and not self.shares_trunk:  # train as many layers above it as the policy has
            split = trunk
        self.module = RewardModule(model, weight_D, split).requires_grad_(False)
        self.trunk = None if split is None or self.shares_trunk else Trunk(model, split)
        self.device, self.tokens_per_microbatch = policy.head_weight.device, tokens_per_microbatch
        self.host = None
        if offload and not self.shares_trunk:
            self.host = HostWeights((w for m in self._modules() for w in (*m.parameters(), *m.buffers())), self.device)
        else:
            for module in self._modules():
                module.to(self.device)

    def __call__(
        self,
        batch: PackedBatch,
        trunk_TD: Tensor | None,
        prompts: Sequence[str] = (),
        responses: Sequence[str] = (),
        outputs: Sequence[str] = (),
        own_trunk_TD: Tensor | None = None,
    ) -> Tensor:
        """Return float32 [S]. Its top reads `trunk_TD`, the output of the policy's trunk that generation kept.

        With a trunk of its own, it reads `own_trunk_TD`, the output of `own_trunk`. With None the trunk is run. Both
        are on the device or the host.
        """
        if self.trunk is not None:
            trunk_TD = own_trunk_TD
        with self._on_device():
            score_S = score_sequences(self.module, batch, trunk_TD, self.tokens_per_microbatch, self.trunk)
        return (score_S - self.mean) / self.std

    def own_trunk(self, batch: PackedBatch) -> Tensor:
        """Run the reward model's own trunk over a pack of any size, a token budget at a time: [T, D]."""
        model = self.trunk.model
        dtype = self.module.score.weight.dtype  # the model may have no language head
        trunk_TD = torch.empty(batch.num_tokens, model.hidden_size, dtype=dtype, device=self.device)
        with self._on_device():
            for ids in pack_together(
                batch.lengths, range(batch.num_sequences), self.tokens_per_microbatch, batch.prompts
            ):
                trunk_TD[batch.columns(ids)] = self.trunk(batch.select(ids))
        return trunk_TD

    def _modules(self) -> list[nn.Module]:
        return [self.module, *([self.trunk.model] if self.trunk else [])]

    def _on_device(self) -> contextlib.AbstractContextManager[None]:
        return self.host.on_device() if self.host else contextlib.nullcontext()

    def clip(self, asked: float | None) -> float | None:
        """Return the clip of scores: --score-clip, else 10 standard deviations if they are normalised."""
        return NORMALISED_CLIP if asked is None and self.normalises else asked

    def __str__(self) -> str:
        if self.shares_trunk:
            return "reads the policy's trunk, only its top runs"
        return "a model of its own" + (", in host memory between uses" if self.host else "")


OneScorer = FunctionScorer | RewardModelScorer


def score_moments(path: Path) -> tuple[float, float] | None:
    """Read the mean and standard deviation of a reward model's training scores from its config.json; None without them.

    UserError for a value that is not a number, and for a deviation of 0.
    """
    config = load_config(path)
    mean, std = getattr(config, "score_mean", None), getattr(config, "score_std", None)
    if mean is None and std is None:
        return None
    for name, value in (("score_mean", mean), ("score_std", std)):
        if not is_number(value):
            raise UserError(f"{path / 'config.json'} has {name} {value!r:.60}: give a number, or remove both")
    if not std > SMALLEST_STD * max(1.0, abs(mean)):
        raise UserError(
            f"{path / 'config.json'} has score_mean {mean}, score_std {std}: its scores of the training data are all "
            "equal, train it again"
        )
    return mean, std


def use_scores(raw_S: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Clip scores: return float32 [S], which are logged and rewarded, and how many were clipped.

    A score that is not finite becomes NaN, so that the run stops.
    """
    limit = math.inf if clip is None else clip
    used_S = torch.where(raw_S.isfinite(), raw_S.clamp(-limit, limit), math.nan)
    return used_S, (raw_S.isfinite() & (used_S != raw_S)).sum()


def describe(scorer: OneScorer, clip: float | None) -> str:
    """Describe the scorer for the header."""
    return f"{scorer}; scores {'not clipped' if clip is None else f'clipped to plus and minus {clip:g}'}"


def check_reward(reward: str) -> None:
    """UserError for a --reward that is wrong whatever the policy."""
    if is_function_name(reward):
        _import(reward)
    else:
        _score_weight(Path(reward))
        score_moments(Path(reward))


def try_scorer(scorer: OneScorer, policy: nn.Module, split: int | None, prompt: Prompt, tokenizer) -> None:
    """Score an empty response, so that a broken scorer fails before anything is written."""
    tokens = (*prompt.tokens, *encode_response(tokenizer, ""))
    batch = PackedBatch.from_sequences([tokens], policy.head_weight.device)
    trunk_TD = Trunk(policy, split)(batch) if scorer.shares_trunk else None
    score = float(scorer(batch, trunk_TD, [prompt.text], [""], [prompt.output])[0])
    if not math.isfinite(score):
        raise UserError(
            f"the reward model scores prompt {prompt.id} as {score}: its weights are damaged, train it again"
        )


def check_outputs(scorer: OneScorer, prompts: Sequence[Prompt], file: str | Path) -> None:
    """UserError if the scorer compares with the records' outputs, and a record has none."""
    if scorer.wants_output and (missing := next((p for p in prompts if not p.output), None)):
        raise UserError(
            f"--reward {scorer.name} compares with the record's output, and record {missing.id} of {file} has none: "
            "add it, or leave this reward out"
        )


def _score_weight(path: Path) -> Tensor:
    weight_D = load_score_weight(path)
    if weight_D is None:
        raise UserError(f"--reward {path} has no score head: train one with launch/reward.py, or give module:function")
    return weight_D


def _import(name: str) -> Callable[..., float]:
    """Import the function that module:function names."""
    instead = "a reward model's directory or module:function"
    return import_function(name, "--reward", ("prompt", "response"), instead, optional=(OUTPUT,))
