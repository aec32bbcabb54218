"""Experience: the rollouts of an iteration as one PackedBatch with columns.

Shapes: T tokens, S sequences, D model. Column t is about the action taken after token t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from engine.batch import PackedBatch, on_device

_STORED = {"rollout_S": "id_S"}  # names of columns in files, where they differ


@dataclass(frozen=True)
class Experience:
    """A suffix _T or _S names the first dimension of a column; `select` uses it."""

    batch: PackedBatch
    rollout_S: Tensor  # int64: index of the rollout in its iteration, independent of the rank
    action_T: Tensor  # bool: the column's target was sampled by the policy
    trunk_TD: Tensor | None  # output of the frozen layers, maybe in host memory; None if all layers are trained
    logprob_T: Tensor  # float32, log-probability under the policy before the update, without top-k and top-p
    ref_logprob_T: Tensor  # float32, under the reference
    value_T: Tensor | None  # float32, the critic's value before the action; None without a critic
    reward_T: Tensor  # float32
    advantage_T: Tensor  # float32; whitened with a critic
    return_T: Tensor | None  # float32, what the critic learns
    score_S: Tensor  # float32, the reward of the whole response, normalised and clipped
    critic_trunk_TD: Tensor | None = None  # as trunk_TD, for a critic with its own trunk

    @cached_property
    def rollouts(self) -> list[int]:
        """The values of rollout_S on the host; the first call waits for the device."""
        return self.rollout_S.tolist()

    def select(self, sequence_ids: Sequence[int]) -> Experience:
        """Return the given sequences with all columns, in the given order."""
        columns = self.batch.columns(sequence_ids)
        rows = on_device(sequence_ids, torch.int64, columns.device)
        taken = {
            name: None if x is None else x[rows] if name.endswith("_S") else x[columns.to(x.device)]
            for name, x in self._columns().items()
        }
        return Experience(batch=self.batch.select(sequence_ids), **taken)

    @staticmethod
    def concat(parts: Sequence[Experience]) -> Experience:
        """Concatenate experiences."""
        columns = [part._columns() for part in parts]
        joined = {
            name: None if columns[0][name] is None else torch.cat([c[name] for c in columns]) for name in columns[0]
        }
        return Experience(batch=PackedBatch.concat([part.batch for part in parts]), **joined)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as plain tensors in host memory, to be saved."""
        lengths_S = torch.tensor(self.batch.lengths, dtype=torch.int64)
        columns = {_STORED.get(name, name): x for name, x in self._columns().items() if x is not None}
        own = {"tokens_T": self.batch.tokens_T, "lengths_S": lengths_S, **columns}
        return {name: x.to("cpu", copy=True).contiguous() for name, x in own.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str) -> Experience:
        """Rebuild from `tensors` on a device; trunk outputs stay where they are."""
        x = dict(tensors)
        tokens = x.pop("tokens_T").split(x.pop("lengths_S").tolist())
        first_actions = (int(part.nonzero()[0]) for part in x["action_T"].split([len(part) for part in tokens]))
        batch = PackedBatch.from_sequences(
            [part.tolist() for part in tokens], device, [first + 1 for first in first_actions]
        )
        names = {stored: name for name, stored in _STORED.items()}
        columns = {
            names.get(name, name): value if name.endswith("trunk_TD") else value.to(device) for name, value in x.items()
        }
        return cls(batch=batch, **{"trunk_TD": None, "value_T": None, "return_T": None, **columns})

    def _columns(self) -> dict[str, Tensor | None]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "batch"}
