"""Experience: what one rollout leaves behind, one PackedBatch and its columns.

Shapes: T tokens, S sequences, D model. Column t is about the action taken after token t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from engine.batch import PackedBatch


@dataclass(frozen=True)
class Experience:
    """Columns end in _T or _S for what their first dimension counts; select and concat go by that name."""

    batch: PackedBatch
    id_S: Tensor  # int64: number of the rollout in its iteration, the same whichever rank made it
    action_T: Tensor  # bool: the column's target was sampled by the policy
    trunk_TD: Tensor | None  # output of the frozen layers, may lie in host memory; None when every layer is trained
    logprob_T: Tensor  # float32, log-probability under the policy that acted
    ref_logprob_T: Tensor  # float32, under the reference
    value_T: Tensor  # float32, the critic's value before the action
    reward_T: Tensor  # float32
    advantage_T: Tensor  # float32, whitened
    return_T: Tensor  # float32
    score_S: Tensor  # float32, the reward of the whole response, normalised and clipped
    critic_trunk_TD: Tensor | None = None  # as trunk_TD, of the critic's own trunk where it does not read the policy's

    def select(self, sequence_ids: Sequence[int]) -> Experience:
        """The given sequences with all their columns, in the order given."""
        columns = self.batch.columns(sequence_ids)
        rows = torch.tensor(list(sequence_ids), device=columns.device)
        taken = {
            name: None if x is None else x[rows] if name.endswith("_S") else x[columns.to(x.device)]
            for name, x in self._columns().items()
        }
        return Experience(batch=self.batch.select(sequence_ids), **taken)

    @staticmethod
    def concat(parts: Sequence[Experience]) -> Experience:
        """Several experiences end to end."""
        columns = [part._columns() for part in parts]
        joined = {
            name: None if columns[0][name] is None else torch.cat([c[name] for c in columns]) for name in columns[0]
        }
        return Experience(batch=PackedBatch.concat([part.batch for part in parts]), **joined)

    def tensors(self) -> dict[str, Tensor]:
        """All of it as plain tensors on the host, to be kept in a file."""
        lengths_S = torch.tensor(self.batch.lengths, dtype=torch.int64)
        columns = {name: x for name, x in self._columns().items() if x is not None}
        own = {"tokens_T": self.batch.tokens_T, "lengths_S": lengths_S, **columns}
        return {name: x.to("cpu", copy=True).contiguous() for name, x in own.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str) -> Experience:
        """What `tensors` made a dictionary of, on a device; outputs of trunks stay where they are."""
        x = dict(tensors)
        tokens = x.pop("tokens_T").split(x.pop("lengths_S").tolist())
        batch = PackedBatch.from_sequences([part.tolist() for part in tokens], device)
        columns = {name: value if name.endswith("trunk_TD") else value.to(device) for name, value in x.items()}
        return cls(batch=batch, **{"trunk_TD": None, **columns})

    def _columns(self) -> dict[str, Tensor | None]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "batch"}
