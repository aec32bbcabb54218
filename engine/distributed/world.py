"""Start ranks and communicate between them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.device import choose_device
from engine.distributed.heartbeat import Heartbeat, meet
from engine.distributed.rendezvous import from_slurm, interface_to

HANG_TIMEOUT_S = 1800.0
_heartbeat: Heartbeat | None = None  # of this process, if there are several ranks


@dataclass(frozen=True)
class World:
    """This process among the ranks."""

    rank: int
    size: int
    device: torch.device
    heartbeat: Heartbeat | None = None  # None on one rank

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def at(self, phase: str | None) -> None:
        """Name the current phase, for the message about a rank that hangs; None: progress is not judged.

        All ranks make the same calls in the same order.
        """
        if self.heartbeat:
            self.heartbeat.at(phase)

    def tick(self) -> None:
        """Report progress within the phase."""
        if self.heartbeat:
            self.heartbeat.tick()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if self.heartbeat:
            self.heartbeat.waits(True)
        yield
        if self.heartbeat:
            self.heartbeat.waits(False)

    def sum(self, x: Tensor) -> Tensor:
        """Sum a tensor over ranks (equal shapes); x itself on one rank."""
        if self.size > 1:
            x = x.clone()
            with self._waiting():
                dist.all_reduce(x)
        return x

    def max(self, value: int) -> int:
        """Return the maximum of one integer per rank."""
        if self.size == 1:
            return value
        return int(self.largest(torch.tensor(value, device=self.device)))

    def largest(self, x: Tensor) -> Tensor:
        """Return the elementwise maximum over ranks (equal shapes); x itself on one rank."""
        if self.size > 1:
            x = x.clone()
            with self._waiting():
                dist.all_reduce(x, op=dist.ReduceOp.MAX)
        return x

    def gather(self, item: Any) -> list[Any]:
        """Return each rank's picklable item, by rank, on every rank."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(items, item)
        return items

    def collect(self, item: Any) -> list[Any] | None:
        """Return each rank's picklable item, by rank, on the first rank; None on the others."""
        if self.size == 1:
            return [item]
        items: list[Any] | None = [None] * self.size if self.is_first else None
        with self._waiting():
            dist.gather_object(item, items)
        return items

    def deal(self, items: list[Any] | None) -> Any:
        """Return this rank's item of those on the first rank; the inverse of `collect`."""
        if self.size == 1:
            return items[0]
        mine: list[Any] = [None]
        with self._waiting():
            dist.scatter_object_list(mine, items)
        return mine[0]

    def broadcast(self, x: Tensor) -> Tensor:
        """Copy the first rank's tensor into each rank's tensor of equal shape."""
        if self.size > 1:
            with self._waiting():
                dist.broadcast(x, 0)
        return x

    def join(self, part: Tensor) -> Tensor:
        """Concatenate flat tensors of equal size over ranks, on every rank."""
        parts = part.new_empty(self.size * part.numel())
        with self._waiting():
            dist.all_gather_into_tensor(parts, part)
        return parts

    def barrier(self) -> None:
        if self.size > 1:
            with self._waiting():
                dist.barrier()


def start_world(timeout_s: float = HANG_TIMEOUT_S) -> World:
    """Join the ranks that a launcher started, or be the only rank without a launcher.

    A rank that hangs for `timeout_s` ends the run with a line that names it (heartbeat.py). The collectives' own
    timeout comes later and names no rank.
    DeepSpeed looks for MPI when RANK and related variables are missing, so they are set here: from srun, or to one rank
    and a free port.
    """
    os.environ.update(from_slurm(os.environ))
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = choose_device(local_rank)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if os.environ["WORLD_SIZE"] != "1" and (interface := interface_to(os.environ["MASTER_ADDR"])):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s + 60))
    rank, size = dist.get_rank(), dist.get_world_size()
    global _heartbeat
    if size == 1:
        return World(rank, size, device)
    if _heartbeat is None:
        _heartbeat = meet(rank, size, os.environ["MASTER_ADDR"], timeout_s, World(rank, size, device).gather)
    return World(rank, size, device, _heartbeat)


def leave() -> None:
    """Stop this rank's heartbeat."""
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.leave()
        _heartbeat = None


def fail_together(mistake: str, say: Callable[[], None]) -> bool:
    """End all ranks for a user's mistake; one of the ranks with the same mistake calls `say`.

    Returns False, and does nothing, if there are no other ranks or none has been met yet.
    """
    if _heartbeat is None:
        return False
    _heartbeat.fail(mistake, say)
    return True


def why_lost(error: RuntimeError) -> str | None:
    """Return the message for an error about unreachable ranks; None for any other error."""
    text = " ".join(str(error).split())
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return f"the ranks do not reach each other ({text[:200]}): see docs/clusters.md"
    if "gloo/transport" in text:
        what = re.search(r"\] (.*?)\. This is", text)
        reason = what[1] if what else text[:200]
    elif isinstance(error, dist.DistBackendError):
        reason = text[:200]
    else:
        return None
    return (
        f"another rank is gone ({reason}): its process or its machine has died, its own last lines may say why; "
        "continue with --resume"
    )


def stop_world() -> None:
    """Leave the group; otherwise PyTorch warns about leaked resources at exit."""
    leave()
    if dist.is_initialized():
        dist.destroy_process_group()
