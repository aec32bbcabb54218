"""Pretraining text in PPO's updates (Ouyang et al. 2022, PPO-ptx), so that the policy keeps its language.

Every optimizer step adds a coefficient times the mean next-token loss over a fixed number of tokens. The text of a step
depends only on the seed and the step's number. Shapes: T tokens, A selected columns.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from torch import Tensor

from engine.base.errors import UserError
from engine.base.mixture import Mixture, Source, names_of
from engine.base.seeds import shuffled
from engine.batch import PackedBatch, action_mask
from engine.distributed.world import World
from engine.objectives.losses import pretraining_loss
from engine.packing import plan_microbatches
from engine.text.tokenizer import encode_prompt
from engine.training.metrics import Metrics
from engine.training.trunk import Trunk
from engine.training.zero import ZeroStep


def pieces_of(tokens: Sequence[int], max_length: int) -> list[tuple[int, ...]]:
    """Cut a document into sequences of at most max_length tokens, in which each token but the first is predicted once.

    A sequence begins with the last token of the one before it.
    """
    return [tuple(tokens[start : start + max_length]) for start in range(0, len(tokens) - 1, max_length - 1)]


@dataclass(frozen=True)
class TextFile:
    """The sequences of a file, as an endless stream of predicted tokens: shuffled again whenever it is used up."""

    pieces: tuple[tuple[int, ...], ...]
    seed: int
    number: int  # of the file in the run
    _passes: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict, compare=False)

    @cached_property
    def tokens(self) -> int:
        """Predicted tokens of one pass."""
        return sum(len(piece) - 1 for piece in self.pieces)

    def take(self, start: int, count: int) -> list[tuple[int, ...]]:
        """Return sequences that predict `count` tokens, from number `start` of the stream on."""
        taken: list[tuple[int, ...]] = []
        while count:
            number, at = divmod(start, self.tokens)
            order, ends = self._pass(number)
            place = bisect_right(ends, at)
            piece = self.pieces[order[place]]
            first = len(piece) - 1 - (ends[place] - at)
            taken.append(piece[first : first + count + 1])
            start, count = start + len(taken[-1]) - 1, count - len(taken[-1]) + 1
        return taken

    def _pass(self, number: int) -> tuple[list[int], list[int]]:
        """Return the order of the pieces in a pass, and how many tokens it has predicted at the end of each."""
        if number not in self._passes:
            self._passes.clear()  # steps go forward
            order = shuffled(len(self.pieces), self.seed, "ptx", self.number, number)
            self._passes[number] = order, list(accumulate(len(self.pieces[i]) - 1 for i in order))
        return self._passes[number]


@dataclass(frozen=True)
class Pretraining:
    """The text of a run: files with weights, how many of their tokens a step predicts, and the loss's coefficient."""

    sources: tuple[Source, ...]
    files: tuple[TextFile, ...]
    coef: float
    parts: tuple[int, ...]  # tokens of a step by file

    @classmethod
    def of(
        cls, sources: Sequence[Source], texts: Sequence[Sequence[str]], tokenizer, max_length: int, seed: int,
        coef: float, tokens: int,
    ) -> Pretraining:  # fmt: skip
        """Encode the documents of each file, each with EOS at its end. UserError if a file has no share of a step."""
        files = []
        for number, documents in enumerate(texts):
            encoded = ([*encode_prompt(tokenizer, text), tokenizer.eos_token_id] for text in documents)
            pieces = tuple(piece for ids in encoded for piece in pieces_of(ids, max_length))
            files.append(TextFile(pieces, seed, number))
        parts = shared_out(tokens, Mixture(tuple(sources), (1,) * len(sources)).shares)
        if 0 in parts:
            raise UserError(
                f"--ptx-tokens is {tokens}, too few for a token of {sources[parts.index(0)].path} in every step: "
                "raise it or the file's weight"
            )
        return cls(tuple(sources), tuple(files), coef, parts)

    @property
    def tokens(self) -> int:
        """Predicted tokens of a step."""
        return sum(self.parts)

    def sequences(self, step: int) -> list[tuple[int, ...]]:
        """Return the sequences of an optimizer step (from 0), of all ranks together."""
        return [x for text, part in zip(self.files, self.parts) for x in text.take(step * part, part)]

    def rows(self, steps: int) -> dict[str, str]:
        """Return header rows: the loss, and what each file gives to so many steps."""
        rows = {"text": f"{names_of(self.sources)}: {self.tokens:,} tokens a step, their mean loss times {self.coef:g}"}
        for f, (source, text, part) in enumerate(zip(self.sources, self.files, self.parts), start=1):
            rows[f"text {f}"] = (
                f"{source.path}: {text.tokens:,} tokens, {part / self.tokens:.1%} of those of a step, read "
                f"{part * steps / text.tokens:.2f} times"
            )
        return rows

    def backward(
        self, zero: ZeroStep, trunk: Trunk | None, step: int, world: World, most_tokens: int, metrics: Metrics
    ) -> list[Tensor]:
        """Add the gradient of this rank's part of a step. Returns its losses. The caller's own loss must follow."""
        sequences, losses = self.sequences(step), []
        for microbatch in plan_microbatches([len(x) for x in sequences], most_tokens, world.size)[world.rank]:
            batch = PackedBatch.from_sequences([sequences[i] for i in microbatch.indices])
            columns_A = action_mask(batch, [1] * batch.num_sequences).nonzero()[:, 0]
            batch, columns_A = batch.to(world.device), columns_A.to(world.device, non_blocking=True)
            logprob_A, _, no_value = zero(batch, trunk and trunk(batch), columns_A, 1.0, with_value=False)
            loss = pretraining_loss(logprob_A, self.coef, self.tokens) * microbatch.weight
            loss = loss if no_value is None else loss + no_value
            zero.backward(loss, last=False)
            metrics.add("loss/ptx", -logprob_A.sum() * microbatch.weight, len(logprob_A) * microbatch.weight)
            losses.append(loss.detach())
            world.tick()
        return losses


def shared_out(count: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Split a count by shares that add up to 1: rounded down, the rest to the largest remainders."""
    parts = [int(share * count + 1e-9) for share in shares]
    order = sorted(range(len(shares)), key=lambda f: (parts[f] - shares[f] * count, f))
    for f in order[: count - sum(parts)]:
        parts[f] += 1
    return tuple(parts)
