"""The decoding sequences, one row each: columns on the device, counts on the host, samples of a prompt adjacent.

Shapes: S rows, C slots, N positions, B pages per slot. A row's index changes when others leave; its slot does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.batch import on_device
from engine.generation.random_address import address
from engine.generation.sample import Sample

NEVER = 1 << 62


class DecodeRows:
    """The state of all rows. Only adding and removing rows is done row by row."""

    def __init__(self, num_slots: int, max_len: int, pages_a_slot: int, device: torch.device):
        self.device = device
        # By slot. A row runs on until its end is noticed, so there is room for one token after the last.
        self.token_CN = torch.full((num_slots, max_len + 1), -1, dtype=torch.int64, device=device)
        self.logprob_CN = torch.zeros(num_slots, max_len + 1, device=device)
        self.table_CB = torch.zeros(num_slots, pages_a_slot, dtype=torch.int32, device=device)
        # By row, on the device: position_S is the position of the last token, ended_at_S that of the first EOS.
        self.slot_S = torch.zeros(0, dtype=torch.int64, device=device)
        self.position_S = self.slot_S.clone()
        self.address_S = self.slot_S.clone()
        self.ended_at_S = self.slot_S.clone()
        # By row, on the host.
        self.samples: list[Sample] = []
        self.host_position_S = np.zeros(0, dtype=np.int64)
        self.first_S = self.host_position_S.copy()  # positions of the first and the last token that may be sampled
        self.last_S = self.host_position_S.copy()
        self.eos_masked_before_S = self.host_position_S.copy()  # EOS is masked at positions before this
        self.group_S = self.host_position_S.copy()
        self.read_S = self.host_position_S.copy()  # first position that no matcher has read
        self._groups: tuple[Tensor, Tensor] | None = None
        self._read_again = 0  # positions of shared pages, for all rows but one of each group

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, samples: Sequence[Sample], seed: int) -> None:
        """Append rows for new samples, each at the last position of its prompt."""
        lengths = [len(s.prompt.tokens) for s in samples]
        slots = [s.slot for s in samples]
        for sample, length in zip(samples, lengths):
            self.token_CN[sample.slot, :length] = on_device(sample.prompt.tokens, torch.int64, self.device)
            self.token_CN[sample.slot, length:] = -1
            pages = on_device(sample.pages, torch.int32, self.device)
            self.table_CB[sample.slot, : len(pages)] = pages
        ids = on_device([(s.request.prompt_id, s.request.sample_id) for s in samples], torch.int64, self.device)
        position = on_device(lengths, torch.int64, self.device) - 1
        self.slot_S = torch.cat([self.slot_S, on_device(slots, torch.int64, self.device)])
        self.position_S = torch.cat([self.position_S, position])
        self.address_S = torch.cat([self.address_S, address(seed, ids[:, 0], ids[:, 1])])
        self.ended_at_S = torch.cat([self.ended_at_S, torch.full_like(position, NEVER)])
        self.samples += samples
        first = np.array(lengths, dtype=np.int64)
        self.host_position_S = np.concatenate([self.host_position_S, first - 1])
        self.first_S = np.concatenate([self.first_S, first])
        self.last_S = np.concatenate([self.last_S, [s.request.max_length - 1 for s in samples]])
        masked = first + [s.request.min_new_tokens for s in samples]
        self.eos_masked_before_S = np.concatenate([self.eos_masked_before_S, masked])
        self.read_S = np.concatenate([self.read_S, first])
        self.group_S = np.concatenate([self.group_S, [id(s.prompt) for s in samples]])
        self._groups = None

    def keep(self, kept_S: np.ndarray) -> None:
        """Keep only the rows of the mask, in order."""
        kept = torch.from_numpy(np.flatnonzero(kept_S)).to(self.device, non_blocking=True)
        for name in ("slot_S", "position_S", "address_S", "ended_at_S"):
            setattr(self, name, getattr(self, name)[kept])
        for name in ("host_position_S", "first_S", "last_S", "eos_masked_before_S", "group_S", "read_S"):
            setattr(self, name, getattr(self, name)[kept_S])
        self.samples = [s for s, keep in zip(self.samples, kept_S) if keep]
        self._groups = None

    def groups(self, page_size: int) -> tuple[Tensor, Tensor]:
        """Return (cu_groups int32 [R+1], shared_R int32 [R]): rows of each prompt, and the positions they share."""
        if self._groups is None:
            starts = np.flatnonzero(np.diff(self.group_S, prepend=-1))
            sizes = np.diff(starts, append=len(self.group_S))
            shared = np.where(sizes > 1, self.first_S[starts] // page_size * page_size, 0)
            self._read_again = int(((sizes - 1) * shared).sum())
            bounds = np.append(starts, len(self.group_S)).astype(np.int32)
            self._groups = (
                torch.from_numpy(bounds).to(self.device, non_blocking=True),
                torch.from_numpy(shared.astype(np.int32)).to(self.device, non_blocking=True),
            )
        return self._groups

    @property
    def sharing(self) -> bool:
        """Whether any rows share positions, as `groups` has found."""
        return self._read_again > 0

    def positions_read(self, page_size: int) -> int:
        """Number of cache positions that a step reads; a shared one counts once."""
        self.groups(page_size)
        return int(self.host_position_S.sum()) + len(self) - self._read_again

    def tokens_S(self) -> Tensor:
        """Return int64 [S], the last token of each row."""
        return self.token_CN[self.slot_S, self.position_S]

    def history_SN(self) -> Tensor:
        """Return int64 [S, N]: the tokens of prompt and response so far, then -1."""
        return self.token_CN[self.slot_S, : int(self.host_position_S.max()) + 1]

    def append(self, token_S: Tensor, logprob_S: Tensor, eos_ids_E: Tensor) -> None:
        """Append one token to each row."""
        self.position_S = self.position_S + 1
        self.token_CN[self.slot_S, self.position_S] = token_S
        self.logprob_CN[self.slot_S, self.position_S] = logprob_S
        ended_at_S = torch.where(torch.isin(token_S, eos_ids_E), self.position_S, NEVER)
        self.ended_at_S = torch.minimum(self.ended_at_S, ended_at_S)
        self.host_position_S = self.host_position_S + 1

    def num_new_tokens(self) -> int:
        """Number of tokens sampled so far in these rows."""
        return int((np.minimum(self.host_position_S, self.last_S) - self.first_S + 1).sum())

    def result(self, row: int, end: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return tokens and log-probabilities of a row up to position `end`."""
        slot, columns = self.samples[row].slot, slice(int(self.first_S[row]), end + 1)
        return tuple(self.token_CN[slot, columns].tolist()), tuple(self.logprob_CN[slot, columns].tolist())
