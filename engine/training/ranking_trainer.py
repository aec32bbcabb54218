"""What reward training and DPO share: a record is a ranking, its K responses are one batch element.

Shapes: T tokens, S responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from engine.batch import on_device
from engine.text.encoding import Example, RankedExamples
from engine.training.checkpoint import fingerprint
from engine.training.context import Context
from engine.training.supervised import SupervisedTrainer
from engine.training.trunk import FrozenWeights, Trunk


@dataclass(frozen=True)
class Responses:
    """All responses of a pack of rankings, shortest first.

    back_S   int64 [S]: where each response of the rankings, in their order, is among `examples`
    rows     index of each example among all training responses, as the trunk keeps them; None for other rankings
    """

    examples: list[Example]
    back_S: Tensor
    rows: list[int] | None


class RankingTrainer(SupervisedTrainer):
    """Optimizer steps over rankings; prompts weigh equally, so a term of the loss is a ranking."""

    def __init__(
        self,
        module: nn.Module,
        model: nn.Module,
        trunk: Trunk | None,
        frozen: FrozenWeights,
        rankings: Sequence[RankedExamples],
        heldout: Sequence[RankedExamples],
        context: Context,
        compared: Sequence[RankedExamples] | None = None,
    ):
        """`compared` are the rankings that a resumed run must have again; by default those it trains on."""
        # Index of each ranking's first response among all training responses.
        self.first = list(accumulate((len(r.examples) for r in rankings), initial=0))
        compared = rankings if compared is None else compared
        identity = fingerprint(model, [e.tokens for r in compared for e in r.examples], [r.ranks for r in compared])
        super().__init__(module, model, trunk, frozen, rankings, heldout, context, identity)

    def examples_of(self, record: RankedExamples) -> Sequence[Example]:
        return record.examples

    def terms_of(self, records: Sequence[RankedExamples]) -> int:
        return len(records)

    def kept_tensors(self, records: Sequence[RankedExamples]) -> dict[str, Tensor]:
        examples = [e for r in records for e in r.examples]
        return {
            "tokens_T": torch.tensor([token for e in examples for token in e.tokens]),
            "lengths_S": torch.tensor([len(e.tokens) for e in examples]),
            "ranks_S": torch.tensor([rank for r in records for rank in r.ranks]),
            "ranking_S": torch.tensor([i for i, r in enumerate(records) for _ in r.examples]),
        }

    def row_numbers(self, rankings: Sequence[RankedExamples], indices: Sequence[int]) -> list[int]:
        """Indices of the responses among all training responses; `indices` are those of the rankings."""
        return [self.first[i] + k for i, r in zip(indices, rankings) for k in range(len(r.examples))]

    def responses_of(self, rankings: Sequence[RankedExamples], indices: Sequence[int] | None) -> Responses:
        """The responses of a pack; `indices` are those of the rankings in the training data, None for other ones."""
        examples = [e for r in rankings for e in r.examples]
        order = sorted(range(len(examples)), key=lambda s: len(examples[s].tokens))
        rows = None if indices is None else self.row_numbers(rankings, indices)
        back_S = on_device(order, torch.int64, self.world.device).argsort()
        return Responses([examples[s] for s in order], back_S, rows and [rows[s] for s in order])
