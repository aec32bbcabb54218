"""Supervised fine-tuning on packed sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.batch import PackedBatch, action_mask
from engine.cli.console import short
from engine.models.quantised import stored_weights
from engine.settings import SFTSettings, split_of
from engine.text.encoding import Example
from engine.training.checkpoint import fingerprint
from engine.training.context import Context
from engine.training.lora import LoraModule
from engine.training.metrics import Metrics
from engine.training.modules import LanguageModule
from engine.training.supervised import SupervisedTrainer
from engine.training.trunk import FrozenWeights, Trunk, frozen_parameters

EARLIER = "earlier_spans"  # of a kept batch, int64 [spans, 3]: sequence, start, end of each earlier answer


def sft_module(
    model: torch.nn.Module, settings: SFTSettings, seed: int, recompute: bool = False
) -> tuple[LanguageModule | LoraModule, int | None]:
    """Return the module that is trained, and the index of the first trained layer; None for all."""
    split = split_of(settings.top_layers, model.num_layers)
    if settings.lora_rank:
        return LoraModule(model, split, settings.lora_rank, settings.alpha, seed, recompute), split
    return LanguageModule(model, split, recompute), split


class SFTTrainer(SupervisedTrainer):
    """Minimise the sum of -log p over the learned tokens, divided by their number in the step (all ranks)."""

    name = "sft"

    def __init__(
        self, model: torch.nn.Module, examples: Sequence[Example], heldout: Sequence[Example], context: Context
    ):
        sft = context.stage
        self.on_all = sft.loss_on == "all"
        identity = fingerprint(model, [e.tokens for e in examples])
        module, split = sft_module(model, sft, context.run_settings.seed, context.batch.recompute)
        trunk = None if split is None else Trunk(model, split)
        frozen = frozen_parameters(model, split)
        if sft.lora_rank:
            frozen = stored_weights(model)
        super().__init__(module, model, trunk, FrozenWeights(frozen), examples, heldout, context, identity)

    def examples_of(self, record: Example) -> Sequence[Example]:
        return (record,)

    def terms_of(self, records: Sequence[Example]) -> int:
        return sum(len(e.tokens) - 1 if self.on_all else e.num_learned for e in records)

    def loss(self, records: Sequence[Example], indices: Sequence[int] | None) -> tuple[Tensor, dict]:
        batch = PackedBatch.from_sequences([e.tokens for e in records])
        earlier = [() if self.on_all else e.earlier for e in records]
        columns_A = learned_columns(batch, [self._first_learned(e) for e in records], earlier)
        batch, columns_A = batch.to(self.world.device), columns_A.to(self.world.device, non_blocking=True)
        trunk_TD = self.trunk and self.trunk(batch, indices)
        return sft_loss(self.zero, batch, trunk_TD, columns_A)[1], {}

    def measure(self) -> tuple[dict[str, float], dict[str, float], str]:
        """The mean loss per token of the held-out examples."""
        metrics = Metrics()
        for ids, weight in self.packs_of(self.heldout):
            chosen = [self.heldout[i] for i in ids]
            metrics.add("eval/loss", self.loss(chosen, None)[0] * weight, self.terms_of(chosen) * weight)
        means = metrics.read(self.world)
        return {"heldout_loss": means["eval/loss"]}, means, f"loss {short(means['eval/loss'])}"

    def kept_tensors(self, records: Sequence[Example]) -> dict[str, Tensor]:
        spans = [(s, *span) for s, e in enumerate(records) for span in e.earlier if not self.on_all]
        return {
            "tokens_T": torch.tensor([token for e in records for token in e.tokens]),
            "lengths_S": torch.tensor([len(e.tokens) for e in records]),
            "prompt_len_S": torch.tensor([self._first_learned(e) for e in records]),
            **({EARLIER: torch.tensor(spans)} if spans else {}),
        }

    def keep_loss(self, loss: float) -> None:
        self.results = {"loss_first": loss, **self.results, "loss_last": loss}

    def also_log(self, records: Sequence[Example]) -> dict[str, float]:
        return {"tokens": sum(len(e.tokens) for e in records)}

    def _first_learned(self, example: Example) -> int:
        return 1 if self.on_all else example.response_start


def learned_columns(batch: PackedBatch, starts: Sequence[int], earlier: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    """Return int64 [A]: the columns whose targets are learned, on the CPU, where `batch` is.

    In each sequence these are the tokens from `starts` on, and those of the spans in `earlier`.
    """
    learned_T = action_mask(batch, starts)
    for first, spans in zip(batch.starts, earlier):
        for start, end in spans:
            learned_T[first + start - 1 : first + end - 1] = True
    return learned_T.nonzero()[:, 0]


def sft_loss(
    module: Callable[..., Tensor], batch: PackedBatch, trunk_TD: Tensor | None, columns_A: Tensor
) -> tuple[Tensor, Tensor]:
    """(log-probabilities of the tokens after the columns, float32 [A]; their negative sum, the loss)."""
    logprob_A = module(batch, trunk_TD, columns_A)
    return logprob_A, -logprob_A.sum()
