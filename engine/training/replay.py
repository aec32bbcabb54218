"""Run a kept batch again, forward and backward, one sequence (or ranking) at a time, to find what is not finite first.

Shapes: T tokens, A selected action columns, S sequences, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.objectives.experience import Experience
from engine.objectives.preferences import sums_of
from engine.settings import DPOSettings, PPOSettings
from engine.text.encoding import Example, RankedExamples
from engine.training.dpo import dpo_loss, lengths_of, packed
from engine.training.guards import COLUMNS
from engine.training.ppo_loss import ppo_loss
from engine.training.reward import reward_loss
from engine.training.sft import EARLIER, learned_columns, sft_loss
from engine.training.trunk import Trunk

LOGIT_ROWS = 64  # positions whose full logits are held at once

# loss_of(module, batch, trunk_TD) -> named quantities in the order they are computed, the last one the loss.
LossOf = Callable[[nn.Module, PackedBatch, Tensor | None], dict[str, Tensor]]


@dataclass(frozen=True)
class Group:
    """A unit with its own loss: a sequence, or the responses of one ranking."""

    ids: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    loss_of: LossOf
    kept: Mapping[str, Tensor]  # what the run had computed, by name
    trunk_TD: Tensor | None = None


@dataclass(frozen=True)
class Replayed:
    """Largest magnitude of each quantity, in the order computed; NaN or infinity if it is not finite."""

    ids: tuple[str, ...]
    tokens: int
    sizes: dict[str, float]
    gradients: dict[str, float]  # by parameter, in the order of the backward pass: last layer first

    @property
    def first_bad(self) -> str | None:
        """Name of the first quantity that is not finite; gradients come last."""
        named = {**self.sizes, **{f"gradient of {name}": size for name, size in self.gradients.items()}}
        return next((name for name, size in named.items() if not _finite(size)), None)


def groups_of(stage: str, ids: Sequence[str], tensors: Mapping[str, Tensor], settings: Any) -> list[Group]:
    """Split a kept batch into groups; `settings` are the stage's own. UserError if it lacks what its stage needs."""
    tokens = [tuple(part.tolist()) for part in tensors["tokens_T"].split(tensors["lengths_S"].tolist())]
    if len(ids) != len(tokens) or not all(isinstance(name, str) for name in ids):
        raise UserError(f"the kept batch has {len(tokens)} sequences and {len(ids)} records: it is damaged")
    try:
        if stage in ("sft", "pretrain"):
            starts, spans = tensors["prompt_len_S"].tolist(), tensors.get(EARLIER, torch.empty(0, 3)).long().tolist()
            return [
                Group((i,), (t,), partial(_sft, start, [(a, b) for n, a, b in spans if n == s]), {})
                for s, (i, t, start) in enumerate(zip(ids, tokens, starts, strict=True))
            ]
        if stage == "reward":
            ranks = tensors["ranks_S"].tolist()
            return [
                Group(*_of(rows, ids, tokens), partial(_reward, [ranks[s] for s in rows]), {})
                for rows in _rankings(ids, tensors)
            ]
        if stage == "dpo":
            return [_dpo_group(rows, ids, tokens, tensors, settings) for rows in _rankings(ids, tensors)]
        columns = dict(tensors)
        kl_coef, offset = (float(columns.pop(name, 0.0)) for name in ("kl_coef", "value_offset"))
        x = Experience.of_tensors(columns, "cpu")
        return [
            Group((name,), (tokens[s],), partial(_ppo, part, settings, kl_coef, offset), _kept(part), part.trunk_TD)
            for s, name in enumerate(ids)
            for part in (x.select([s]),)
        ]
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"the kept batch does not hold what a step of {stage} needs ({error}): it is damaged"
        ) from error


def replay(model: nn.Module, module: nn.Module, split: int | None, groups: Iterable[Group]) -> Iterator[Replayed]:
    """Run each group forward and backward. `module` is the trained part of `model`: layers from `split` on, or all."""
    device = model.head_weight.device
    for group in groups:
        if max(max(s) for s in group.sequences) >= model.vocab_size or min(min(s) for s in group.sequences) < 0:
            raise UserError(
                f"the kept batch has tokens outside this model's vocabulary of {model.vocab_size}: replay it with the "
                "model of the run"
            )
        batch = PackedBatch.from_sequences(group.sequences, device)
        sizes = {f"kept {name}": _size(x) for name, x in group.kept.items()}
        sizes |= _layers(model, module, batch)
        if split is None:
            trunk_TD = None
        else:
            trunk_TD = Trunk(model, split)(batch) if group.trunk_TD is None else group.trunk_TD.to(device)
        quantities = group.loss_of(module, batch, trunk_TD)
        sizes |= {name: _size(x) for name, x in quantities.items()}
        module.zero_grad()
        quantities["loss"].backward()
        reached = reversed([(name, p.grad) for name, p in module.named_parameters() if p.grad is not None])
        yield Replayed(group.ids, batch.num_tokens, sizes, {name: _size(grad) for name, grad in reached})


def bad_weights(*modules: nn.Module) -> list[str]:
    """List the weights that are not finite."""
    named = {name: w for module in modules for name, w in module.named_parameters()}
    return [name for name, w in named.items() if not bool(w.isfinite().all())]


@torch.no_grad()
def _layers(model: nn.Module, module: nn.Module, batch: PackedBatch) -> dict[str, float]:
    """Sizes of the residual stream after each layer, and of the logits if there is a language head."""
    h_TD = model.embed(batch)
    sizes = {"embedding": _size(h_TD)}
    for i in range(model.num_layers):
        h_TD = model.run(h_TD, batch, i, i + 1)
        sizes[f"layer {i}"] = _size(h_TD)
    h_TD = model.norm(h_TD)
    sizes["final norm"] = _size(h_TD)
    if hasattr(module, "head_VD"):
        rows = [_size(rows_RD @ module.head_VD.T) for rows_RD in h_TD.split(LOGIT_ROWS)]
        sizes["logits"] = float(torch.tensor(rows).max())
    return sizes


def _sft(
    start: int, earlier: Sequence[tuple[int, int]], module: nn.Module, batch: PackedBatch, trunk_TD: Tensor | None
) -> dict[str, Tensor]:
    columns_A = learned_columns(batch, [start], [earlier])
    logprob_A, loss = sft_loss(module, batch, trunk_TD, columns_A)
    return {"logprob": logprob_A, "loss": loss}


def _reward(ranks: Sequence[int], module: nn.Module, batch: PackedBatch, trunk_TD: Tensor | None) -> dict[str, Tensor]:
    score_S = module(batch, trunk_TD)
    return {"score": score_S, "loss": reward_loss(score_S, [ranks])[0]}


def _ppo(
    x: Experience,
    ppo: PPOSettings,
    kl_coef: float,
    offset: float,
    module: nn.Module,
    batch: PackedBatch,
    trunk_TD: Tensor | None,
) -> dict[str, Tensor]:
    module.value_offset = offset
    here = Experience.of_tensors(x.tensors(), batch.tokens_T.device)
    terms = ppo_loss(module, dataclasses.replace(here, batch=batch, trunk_TD=trunk_TD), ppo, kl_coef)
    quantities = {
        "logprob": terms.logprob_A, "entropy": terms.entropy_A, "value": terms.value_A,
        "ratio": terms.log_ratio_A.exp(), "policy loss": terms.policy, "KL loss": terms.kl, "value loss": terms.value,
        "loss": terms.loss,
    }  # fmt: skip
    return {name: x for name, x in quantities.items() if x is not None}


def _dpo_group(
    rows: Sequence[int],
    ids: Sequence[str],
    tokens: Sequence[tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    dpo: DPOSettings,
) -> Group:
    """The responses of one ranking, with the reference's log-probabilities as the run had them."""
    names, sequences = _of(rows, ids, tokens)
    starts, ranks = (tensors[name].tolist() for name in ("prompt_len_S", "ranks_S"))
    examples = tuple(Example(ids[s], tokens[s], starts[s]) for s in rows)
    ranking = RankedExamples(names[0], examples, tuple(ranks[s] for s in rows))
    ref_logprob_S = tensors["ref_logprob_S"][list(rows)]
    return Group(names, sequences, partial(_dpo, ranking, ref_logprob_S, dpo), {"ref logprob": ref_logprob_S})


def _dpo(
    ranking: RankedExamples,
    ref_logprob_S: Tensor,
    dpo: DPOSettings,
    module: nn.Module,
    batch: PackedBatch,
    trunk_TD: Tensor | None,
) -> dict[str, Tensor]:
    columns_A = packed(ranking.examples)[1].to(batch.tokens_T.device)
    logprob_A = module(batch, trunk_TD, columns_A)
    logprob_S = sums_of(logprob_A, lengths_of(ranking.examples))
    loss, _ = dpo_loss(logprob_S, ref_logprob_S, [ranking], dpo)
    return {"logprob": logprob_A, "log ratio": logprob_S - ref_logprob_S.to(logprob_S.device), "loss": loss}


def _rankings(ids: Sequence[str], tensors: Mapping[str, Tensor]) -> list[list[int]]:
    """The sequences of each ranking."""
    ranking = tensors["ranking_S"].tolist()
    if not len(ids) == len(tensors["ranks_S"]) == len(ranking):
        raise ValueError("columns of different lengths")
    return [[s for s, n in enumerate(ranking) if n == number] for number in dict.fromkeys(ranking)]


def _of(
    rows: Sequence[int], ids: Sequence[str], tokens: Sequence[tuple[int, ...]]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    return tuple(ids[s] for s in rows), tuple(tokens[s] for s in rows)


def _kept(x: Experience) -> dict[str, Tensor]:
    """The columns of a rollout at its actions, causes first."""
    columns: dict[str, Any] = {} if x.trunk_TD is None else {"trunk": x.trunk_TD}
    for name in COLUMNS:
        if (column := getattr(x, name)) is None:
            continue
        columns[name.rpartition("_")[0]] = column[x.action_T] if name.endswith("_T") else column
    return columns


def _size(x: Tensor) -> float:
    """Return the largest magnitude; NaN if any number is NaN."""
    return float(x.detach().float().abs().max()) if x.numel() else 0.0


def _finite(size: float) -> bool:
    return abs(size) < float("inf")
