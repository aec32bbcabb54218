"""PackedBatch: sequences end to end, the only batch layout in the engine.

Shapes: T tokens of all sequences together, S sequences. Column t of every [T] tensor in the engine is about the action
taken after token t; the last position of a sequence is never an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """Sequences end to end, without padding.

    tokens_T    int64 [T]    all sequences, concatenated
    positions_T int64 [T]    restarts at 0 in each sequence
    cu_seqlens  int32 [S+1]  boundaries: sequence s is columns cu_seqlens[s] to cu_seqlens[s+1]
    lengths     the sequence lengths on the host, so that a forward never waits for the device
    """

    tokens_T: Tensor
    positions_T: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> PackedBatch:
        """Concatenate token lists. Each has at least one token."""
        lengths = tuple(len(s) for s in sequences)
        assert all(lengths), "a sequence without tokens cannot be packed"
        tokens = [token for sequence in sequences for token in sequence]
        positions = [i for n in lengths for i in range(n)]
        bounds = [0]
        for n in lengths:
            bounds.append(bounds[-1] + n)
        return cls(
            torch.tensor(tokens, dtype=torch.int64, device=device),
            torch.tensor(positions, dtype=torch.int64, device=device),
            torch.tensor(bounds, dtype=torch.int32, device=device),
            lengths,
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

    def columns(self, sequence_ids: Sequence[int]) -> Tensor:
        """Return the columns (int64) of the given sequences, in the given order."""
        parts = [torch.arange(self.starts[s], self.starts[s] + self.lengths[s]) for s in sequence_ids]
        return torch.cat(parts).to(self.tokens_T.device)

    def select(self, sequence_ids: Sequence[int]) -> PackedBatch:
        """Return a batch of the given sequences, in the given order."""
        columns = self.columns(sequence_ids)
        lengths = tuple(self.lengths[s] for s in sequence_ids)
        bounds = torch.tensor((0, *lengths), dtype=torch.int64).cumsum(0).to(torch.int32)
        return PackedBatch(self.tokens_T[columns], self.positions_T[columns], bounds.to(self.tokens_T.device), lengths)

    @staticmethod
    def concat(batches: Sequence[PackedBatch]) -> PackedBatch:
        """Concatenate batches."""
        lengths = tuple(n for b in batches for n in b.lengths)
        bounds = torch.tensor((0, *lengths), dtype=torch.int64).cumsum(0).to(torch.int32)
        return PackedBatch(
            torch.cat([b.tokens_T for b in batches]),
            torch.cat([b.positions_T for b in batches]),
            bounds.to(batches[0].tokens_T.device),
            lengths,
        )

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(
            self.tokens_T.to(device, non_blocking=True),
            self.positions_T.to(device, non_blocking=True),
            self.cu_seqlens.to(device, non_blocking=True),
            self.lengths,
        )


def action_mask(batch: PackedBatch, prompt_lens: Sequence[int]) -> Tensor:
    """Return bool [T]: columns whose target is a response token, given each sequence's prompt length.

    With prompt length 0, all tokens but the first are response tokens.
    """
    first_S = torch.tensor(prompt_lens, device=batch.positions_T.device) - 1
    mask_T = batch.positions_T >= first_S[batch.sequence_T]
    mask_T[batch.last_S] = False
    return mask_T
