"""Ranks: starting them, sums over them, and nothing else that knows there are several."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks of a tensor of equal shape on each; x itself on one rank."""
        if self.size > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    def max(self, value: int) -> int:
        """The largest of one integer a rank."""
        if self.size == 1:
            return value
        x = torch.tensor(value, device=self.device)
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
        return int(x)

    def gather(self, item: Any) -> list[Any]:
        """One picklable item of each rank, in order of rank, on every rank."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def collect(self, item: Any) -> list[Any] | None:
        """One picklable item of each rank, in order of rank, on the first; None on the others."""
        if self.size == 1:
            return [item]
        items: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(item, items)
        return items

    def deal(self, items: list[Any] | None) -> Any:
        """The inverse of `collect`: this rank's of the items that the first rank holds."""
        if self.size == 1:
            return items[0]
        mine: list[Any] = [None]
        dist.scatter_object_list(mine, items)
        return mine[0]

    def broadcast(self, x: Tensor) -> Tensor:
        """The first rank's tensor, written into the one of equal shape that each rank gives."""
        if self.size > 1:
            dist.broadcast(x, 0)
        return x

    def join(self, part: Tensor) -> Tensor:
        """The flat tensors of equal size of all ranks, end to end, on every rank."""
        parts = part.new_empty(self.size * part.numel())
        dist.all_gather_into_tensor(parts, part)
        return parts

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def start_world(timeout_s: float = 1800) -> World:
    """Join the ranks a launcher started, or be the only one when there was no launcher.

    DeepSpeed looks for MPI when RANK and its companions are absent, so they are set here; the port is a free one.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return World(dist.get_rank(), dist.get_world_size(), device)


def stop_world() -> None:
    """Leave the group; without this PyTorch warns about leaked resources at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
