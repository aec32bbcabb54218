"""PackedBatch: sequences end to end, the only batch layout in the engine.

Shapes: T tokens of all sequences together, S sequences. Column t of every [T] tensor in the engine is about the action
taken after token t; the last position of a sequence is never an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from engine.shared_rows import SharedRows, shared_rows


@dataclass(frozen=True)
class PackedBatch:
    """Sequences end to end, without padding.

    tokens_T    int64 [T]    all sequences, concatenated
    positions_T int64 [T]    restarts at 0 in each sequence
    cu_seqlens  int32 [S+1]  boundaries: sequence s is columns cu_seqlens[s] to cu_seqlens[s+1]
    lengths     the sequence lengths on the host, so that a forward never waits for the device
    prompts     of each sequence a number for its prompt, and the prompt's length: sequences with the same number begin
                with the same tokens, so that layers may run those once (engine/shared_rows.py); None: not known
    """

    tokens_T: Tensor
    positions_T: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    prompts: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
        prompt_lens: Sequence[int] | None = None,
    ) -> PackedBatch:
        """Concatenate token lists. Each has at least one token. With `prompt_lens`, equal prompts are found."""
        lengths = tuple(len(s) for s in sequences)
        assert all(lengths), "a sequence without tokens cannot be packed"
        tokens = [token for sequence in sequences for token in sequence]
        positions = [i for n in lengths for i in range(n)]
        return cls(
            on_device(tokens, torch.int64, device),
            on_device(positions, torch.int64, device),
            _bounds(lengths, device),
            lengths,
            None if prompt_lens is None else _numbered(sequences, prompt_lens),
        )

    @classmethod
    def of_singles(cls, tokens_T: Tensor, positions_T: Tensor) -> PackedBatch:
        """Make each token its own sequence at the given position, for decoding rows."""
        n = len(tokens_T)
        bounds = torch.arange(n + 1, dtype=torch.int32, device=tokens_T.device)
        return cls(tokens_T, positions_T, bounds, (1,) * n)

    @property
    def num_tokens(self) -> int:
        return self.tokens_T.shape[0]

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    @cached_property
    def max_len(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first column of each sequence, on the host."""
        starts, at = [], 0
        for n in self.lengths:
            starts.append(at)
            at += n
        return tuple(starts)

    @cached_property
    def last_S(self) -> Tensor:
        """int64 [S]: the column of each sequence's last token."""
        return self.cu_seqlens[1:].long() - 1

    @cached_property
    def target_T(self) -> Tensor:
        """int64 [T]: the token after column t; at the last column of a sequence, its own token."""
        target = torch.roll(self.tokens_T, -1)
        target[self.last_S] = self.tokens_T[self.last_S]
        return target

    @cached_property
    def sequence_T(self) -> Tensor:
        """int64 [T]: the sequence of each column."""
        sizes = self.cu_seqlens[1:] - self.cu_seqlens[:-1]
        ids = torch.arange(self.num_sequences, device=sizes.device)
        return torch.repeat_interleave(ids, sizes.long(), output_size=self.num_tokens)

    @cached_property
    def shared(self) -> SharedRows | None:
        """The rows that layers run for these tokens; None where each token has its own."""
        return shared_rows(self.lengths, self.prompts, self.tokens_T.device) if self.prompts else None

    def columns(self, sequence_ids: Sequence[int]) -> Tensor:
        """Return the columns (int64) of the given sequences, in the given order."""
        parts = [torch.arange(self.starts[s], self.starts[s] + self.lengths[s]) for s in sequence_ids]
        return torch.cat(parts).to(self.tokens_T.device, non_blocking=True)

    def select(self, sequence_ids: Sequence[int]) -> PackedBatch:
        """Return a batch of the given sequences, in the given order."""
        columns = self.columns(sequence_ids)
        lengths = tuple(self.lengths[s] for s in sequence_ids)
        return PackedBatch(
            self.tokens_T[columns], self.positions_T[columns], _bounds(lengths, columns.device), lengths,
            self.prompts and tuple(self.prompts[s] for s in sequence_ids),
        )  # fmt: skip

    @staticmethod
    def concat(batches: Sequence[PackedBatch]) -> PackedBatch:
        """Concatenate batches. Prompts of different batches stay different."""
        lengths = tuple(n for b in batches for n in b.lengths)
        return PackedBatch(
            torch.cat([b.tokens_T for b in batches]),
            torch.cat([b.positions_T for b in batches]),
            _bounds(lengths, batches[0].tokens_T.device),
            lengths,
            _joined([b.prompts for b in batches]),
        )

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(
            self.tokens_T.to(device, non_blocking=True),
            self.positions_T.to(device, non_blocking=True),
            self.cu_seqlens.to(device, non_blocking=True),
            self.lengths,
            self.prompts,
        )


def action_columns(batch: PackedBatch, action_T: Tensor) -> Tensor:
    """Return int64 [A]: the columns of an action_mask, without waiting for the device if the batch knows its prompts.

    The mask must be that of the batch's own prompt lengths.
    """
    if batch.prompts is None:
        return action_T.nonzero()[:, 0]
    spans = zip(batch.starts, batch.lengths, batch.prompts)
    parts = [torch.arange(start + max(prompt - 1, 0), start + length - 1) for start, length, (_, prompt) in spans]
    return torch.cat(parts).to(action_T.device, non_blocking=True)


def on_device(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return a tensor of these numbers. The host does not wait for the device: CUDA keeps a copy of them until then."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def _bounds(lengths: Sequence[int], device: torch.device | str) -> Tensor:
    """Return cu_seqlens of sequences of these lengths."""
    return on_device([0, *accumulate(lengths)], torch.int32, device)


def _numbered(sequences: Sequence[Sequence[int]], prompt_lens: Sequence[int]) -> tuple[tuple[int, int], ...]:
    numbers: dict[tuple[int, ...], int] = {}
    prompts = (tuple(sequence[:n]) for sequence, n in zip(sequences, prompt_lens, strict=True))
    return tuple((numbers.setdefault(prompt, len(numbers)), len(prompt)) for prompt in prompts)


def _joined(parts: Sequence[tuple[tuple[int, int], ...] | None]) -> tuple[tuple[int, int], ...] | None:
    if None in parts:
        return None
    joined: list[tuple[int, int]] = []
    for prompts in parts:
        first = 1 + max((number for number, _ in joined), default=-1)
        joined += [(first + number, length) for number, length in prompts]
    return tuple(joined)


def action_mask(batch: PackedBatch, prompt_lens: Sequence[int]) -> Tensor:
    """Return bool [T]: columns whose target is a response token, given each sequence's prompt length.

    With prompt length 0, all tokens but the first are response tokens.
    """
    first_S = on_device(prompt_lens, torch.int64, batch.positions_T.device) - 1
    mask_T = batch.positions_T >= first_S[batch.sequence_T]
    mask_T[batch.last_S] = False
    return mask_T
