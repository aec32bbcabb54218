"""The frozen lower layers of a model: run them over a pack, or keep their outputs over a fixed data set on disk.

Shapes: T tokens, S sequences, N kept tokens, D model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.cli.console import Console
from engine.distributed.world import World
from engine.models.config_rules import computed_from
from engine.models.quantised import stored_weights, tensors_of
from engine.packing import plan_microbatches
from engine.settings import BatchSettings


def same_trunk(a: nn.Module, b: nn.Module, split: int) -> bool:
    """Return whether two models have bitwise equal embeddings and layers below `split`.

    Config fields that may change what is computed must be equal, too.
    """
    if computed_from(a.config) != computed_from(b.config):
        return False
    theirs = dict(stored_weights(b))
    for name, weight in trunk_parameters(a, split):
        other = theirs.get(name)
        if other is None or other.shape != weight.shape or not torch.equal(other.to(weight), weight):
            return False
    return True


def trunk_parameters(model: nn.Module, split: int) -> list[tuple[str, Tensor]]:
    """List the weights below `split` by name, as they are stored: the embeddings and the frozen layers."""
    kept = []
    for name, parameter in stored_weights(model):
        above = name.startswith("layers.") and int(name.split(".")[1]) >= split
        if not above and not name.startswith(("final_norm.", "head.")):
            kept.append((name, parameter))
    return kept


def frozen_parameters(model: nn.Module, split: int | None) -> list[tuple[str, Tensor]]:
    """List the weights that the training of a language model's layers from `split` on leaves as they are: the trunk's
    and the head's. None if all layers are trained."""
    if split is None:
        return []
    return [*trunk_parameters(model, split), *((f"head {i}", w) for i, w in enumerate(tensors_of(model.head_weight)))]


def rows_of(trunk_TD: Tensor | None, columns_A: Tensor) -> Tensor | None:
    """Select rows of the trunk's output, kept on any device, and copy them to that of `columns_A`. None gives None."""
    if trunk_TD is None:
        return None
    return trunk_TD[columns_A.to(trunk_TD.device)].to(columns_A.device, non_blocking=True)


def checksums(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return an int64 checksum of each named tensor, on its device: the sum of its words as integers.

    A change of any single weight, even from 0.0 to -0.0, changes the sum; the order of summation does not.
    """
    sums = {}
    for name, weight in weights:
        words = (
            weight.detach()
            .contiguous()
            .view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.itemsize])
        )
        parts = words.flatten().split(1 << 22)  # the sum converts to int64: chunks keep that copy small
        sums[name] = torch.stack([part.sum(dtype=torch.int64) for part in parts]).sum()
    return sums


class FrozenWeights:
    """Weights that must not change: takes their checksums at the start, and `check` compares them at the end."""

    def __init__(self, weights: Iterable[tuple[str, Tensor]]):
        self.weights = list(weights)
        self.before = checksums(self.weights)

    def check(self) -> None:
        """AssertionError that names the first weight that has changed."""
        after = checksums(self.weights)
        changed = [name for name, was in self.before.items() if not torch.equal(after[name], was)]
        assert not changed, f"{len(changed)} frozen weights have changed in this run, the first: {changed[0]}"


def kept_rows(parts: Sequence[Tensor | None], budget_bytes: float, device: torch.device) -> Tensor | None:
    """Concatenate the trunk's outputs: on the device within the budget, else in pinned host memory.

    None if there is no trunk and the parts are None.
    """
    if parts[0] is None:
        return None
    size = sum(part.numel() * part.element_size() for part in parts)
    if size <= budget_bytes or device.type == "cpu":
        return torch.cat(list(parts)).to(device)
    return torch.cat([part.cpu() for part in parts]).pin_memory()


class Trunk:
    """Layers 0 to split-1 of a model, frozen. Call it for trunk_TD, the input of layer `split`."""

    def __init__(self, model: nn.Module, split: int):
        self.model, self.split = model, split
        self.starts: list[int] = [0]  # first row of each kept sequence, then the number of rows
        self.kept_ND: Tensor | None = None

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, ids: Sequence[int] | None = None) -> Tensor:
        """Return trunk_TD of a pack. `ids` are the indices of its sequences in `keep`; kept ones are read, not run."""
        if ids is None or self.kept_ND is None:
            return self.model.run(self.model.embed(batch), batch, 0, self.split)
        device, dtype = batch.tokens_T.device, self.kept_ND.dtype
        trunk_TD = torch.empty(batch.num_tokens, self.model.hidden_size, dtype=dtype, device=device)
        rows = trunk_TD.split(batch.lengths)
        missing = []
        for s, i in enumerate(ids):
            if i < len(self.starts) - 1:
                rows[s].copy_(self.kept_ND[self.starts[i] : self.starts[i + 1]], non_blocking=True)
            else:
                missing.append(s)
        if missing:
            trunk_TD[batch.columns(missing)] = self(batch.select(missing))
        return trunk_TD

    def keep(
        self, sequences: Sequence[Sequence[int]], file: Path, batch: BatchSettings, world: World, console: Console
    ) -> int:
        """Run the trunk once over as many sequences as fit the budget. Returns how many are kept.

        The file is memory-mapped, so what fits stays in the page cache. Each rank writes a shard and reads the whole
        file, so the ranks must share a file system.
        """
        weight = next(self.model.parameters())
        row_bytes = self.model.hidden_size * weight.element_size()
        starts = [0, *accumulate(len(s) for s in sequences)]
        count = sum(end * row_bytes <= batch.trunk_cache * 1e9 for end in starts[1:])
        if count == 0:
            return 0
        if world.is_first:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "wb") as handle:
                handle.truncate(starts[count] * row_bytes)
        world.barrier()
        if not file.is_file() or file.stat().st_size != starts[count] * row_bytes:
            raise UserError(f"{file} is not seen by rank {world.rank}: put --runs on a shared disk, or --trunk-cache 0")
        kept_N = torch.from_file(
            str(file), shared=True, size=starts[count] * self.model.hidden_size, dtype=weight.dtype
        )
        kept_ND = kept_N.view(-1, self.model.hidden_size)
        lengths = [len(s) for s in sequences[:count]]
        plan = plan_microbatches(lengths, batch.tokens_per_microbatch, world.size)[world.rank]
        with console.bar(len(plan), "trunk", "microbatch") as bar:
            for microbatch in plan:
                pack = PackedBatch.from_sequences([sequences[i] for i in microbatch.indices], weight.device)
                parts = self(pack).split(pack.lengths)
                for i, part in zip(microbatch.indices, parts):
                    if microbatch.weight:
                        kept_ND[starts[i] : starts[i + 1]] = part.cpu()
                bar.update()
        world.barrier()
        if world.is_first:
            file.unlink()  # all ranks have mapped it: the space is freed when the last one ends
        self.starts, self.kept_ND = starts[: count + 1], kept_ND
        return count
