"""Continued pretraining on text: the mean next-token loss over rows of documents, held-out files by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.base.draws import Draws
from engine.batch import PackedBatch
from engine.cli.console import short
from engine.settings import PretrainSettings, RunSettings, split_of
from engine.text.encoding import Example
from engine.training.checkpoint import Saved, fingerprint
from engine.training.context import Context
from engine.training.corpus import Corpus, HeldOutText, Row
from engine.training.metrics import Metrics
from engine.training.modules import LanguageModule
from engine.training.sft import learned_columns, sft_loss
from engine.training.supervised import SupervisedTrainer
from engine.training.trunk import FrozenWeights, Trunk, frozen_parameters

EMBEDDINGS = ("body.model.embedding.", "body.model.head.")  # what --embedding-lr is for


def pretraining_module(
    model: nn.Module, settings: PretrainSettings, recompute: bool = False
) -> tuple[LanguageModule, int | None]:
    """Return the module with the trained layers, and the index of the first one; None if embeddings are trained."""
    if settings.bottom_layers is None:
        split = split_of(settings.top_layers, model.num_layers)
        return LanguageModule(model, split, recompute), split
    middle = settings.middle(model.num_layers)
    module = LanguageModule(model, recompute=recompute)
    for i in middle:
        model.layers[i].requires_grad_(False)
    return module, None


class PretrainTrainer(SupervisedTrainer):
    """Minimise -log p of every token but the first of a document, divided by their number in the step (all ranks).

    A record is a row of the corpus. Checkpoints and the result hold `drawn`: documents begun and tokens predicted so
    far, by file.
    """

    name = "pretrain"
    apart = EMBEDDINGS
    records: Corpus
    heldout: Sequence[HeldOutText]

    def __init__(self, model: nn.Module, corpus: Corpus, heldout: Sequence[HeldOutText], context: Context):
        identity = {**fingerprint(model), "tokens": corpus.digest}
        module, split = pretraining_module(model, context.stage, context.batch.recompute)
        frozen = frozen_parameters(model, split)
        trunk = None if split is None else Trunk(model, split)
        super().__init__(module, model, trunk, FrozenWeights(frozen), corpus, heldout, context, identity)

    def draw(self, run_settings: RunSettings) -> Draws:
        size, epochs = self.batch.batch_size, self.batch.epochs
        return Draws(self.mixture, size, epochs, run_settings.max_steps, run_settings.seed, self.name)

    @property
    def passes(self) -> int:
        return 1  # the trunk's outputs of a large text are not kept

    def apart_rate(self, step: int) -> float | None:
        peak = self.settings.embedding_lr
        return None if peak is None else self.rate(step, peak)

    def examples_of(self, record: Row | Example) -> Sequence[Example]:
        return record.examples if isinstance(record, Row) else (record,)

    def terms_of(self, records: Sequence[Row | Example]) -> int:
        return sum(len(e.tokens) - 1 for record in records for e in self.examples_of(record))

    def loss(self, records: Sequence[Row | Example], indices: Sequence[int] | None) -> tuple[Tensor, dict]:
        batch, columns_A = packed([e for record in records for e in self.examples_of(record)])
        batch, columns_A = batch.to(self.world.device), columns_A.to(self.world.device, non_blocking=True)
        return sft_loss(self.zero, batch, self.trunk and self.trunk(batch), columns_A)[1], {}

    def measure(self) -> tuple[dict[str, float], dict[str, float], str]:
        """Perplexity per token and bits per byte of each held-out file; bits_per_byte is that of the first one."""
        metrics, results, words = Metrics(), {}, []
        for text in self.heldout:
            for ids, weight in self.packs_of(text.examples):
                chosen = [text.examples[i] for i in ids]
                loss = self.loss(chosen, None)[0] * weight
                metrics.add(f"loss/{text.name}", loss, self.terms_of(chosen) * weight)
                metrics.add(f"bits/{text.name}", loss / math.log(2), sum(text.bytes[i] for i in ids) * weight)
        means = metrics.read(self.world)
        for text in self.heldout:
            bits, perplexity = means[f"bits/{text.name}"], perplexity_of(means[f"loss/{text.name}"])
            results |= {f"perplexity/{text.name}": perplexity, f"bits_per_byte/{text.name}": bits}
            words.append(f"{text.name} perplexity {short(perplexity)}, {bits:.4f} bits per byte")
        every = [means[f"bits/{text.name}"] for text in self.heldout]
        results |= {"bits_per_byte": every[0], "bits_per_byte_mean": math.fsum(every) / len(every)}
        return results, {f"eval/{name}": value for name, value in results.items()}, "; ".join(words)

    def kept_tensors(self, records: Sequence[Row]) -> dict[str, Tensor]:
        examples = [e for record in records for e in self.examples_of(record)]
        return {
            "tokens_T": torch.tensor([token for e in examples for token in e.tokens]),
            "lengths_S": torch.tensor([len(e.tokens) for e in examples]),
            "prompt_len_S": torch.ones(len(examples), dtype=torch.int64),
        }

    def prepare(self, saved: Saved | None) -> None:
        super().prepare(saved)
        none = {file.name: {"documents": 0, "tokens": 0} for file in self.records.files}
        self.results = {"drawn": none, **self.results}

    def keep_loss(self, loss: float) -> None:
        self.results = {"loss_first": loss, **self.results, "loss_last": loss}

    def also_log(self, records: Sequence[Row]) -> dict[str, float]:
        """Count what was drawn; the tokens of this step, and documents and tokens so far by file."""
        drawn = {name: dict(counts) for name, counts in self.results["drawn"].items()}
        for row in records:
            counts = drawn[self.records.files[row.file].name]
            counts["documents"] += row.documents
            counts["tokens"] += row.predicted
        self.results = {**self.results, "drawn": drawn}
        so_far = {f"drawn/{file}/{what}": n for file, counts in drawn.items() for what, n in counts.items()}
        return {"tokens": sum(len(e.tokens) for row in records for e in row.examples), **so_far}

    def finish(self) -> dict[str, Any]:
        for name, counts in self.results["drawn"].items():
            self.console.say(f"drawn from {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
        return self.results


def packed(examples: Sequence[Example]) -> tuple[PackedBatch, Tensor]:
    """(the examples end to end, int64 [A]: the columns whose targets are learned, all but the last of each)."""
    batch = PackedBatch.from_sequences([e.tokens for e in examples])
    return batch, learned_columns(batch, [1] * len(examples), [()] * len(examples))


def perplexity_of(loss: float) -> float:
    """Return exp of a mean loss per token; the largest float where it overflows."""
    return math.exp(min(loss, 700.0))
