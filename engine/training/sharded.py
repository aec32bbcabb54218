"""Give back the memory of frozen weights while they are not used: as ZeRO-3 does with trained ones, or to the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.distributed.world import World


class ShardedWeights:
    """Whole at first. `release` keeps only this rank's part of each weight; `gather` makes them whole again.

    With `on_host`, the parts are in host memory: pinned, and made once, as the weights never change.
    """

    def __init__(self, weights: Sequence[Tensor], world: World, on_host: bool = False):
        self.weights, self.world, self.on_host = weights, world, on_host
        self.parts: list[Tensor] | None = None  # flat [ceil(N / ranks)] of each weight of N elements, while released
        self._host_parts: list[Tensor] | None = None
        self.shapes = [w.shape for w in weights]

    def release(self) -> None:
        """Free the other ranks' parts, and with `on_host` all on the device. Not to be used until `gather`."""
        if self.parts is not None or self.world.size == 1 and not self.on_host:
            return
        self.parts = self._host_parts or [self._part(w.data) for w in self.weights]
        if self.on_host:
            self._host_parts = self.parts
        for weight in self.weights:
            weight.data = weight.data.new_empty(0)

    def gather(self) -> None:
        """Restore the whole weights, bit for bit, on every rank. All ranks call it."""
        if self.parts is not None:
            for weight, part, shape in zip(self.weights, self.parts, self.shapes):
                part = _on_device(part, weight.device)
                whole = part if self.world.size == 1 else self.world.join(part)
                weight.data = whole[: shape.numel()].view(shape)
            self.parts = None

    def _part(self, weight: Tensor) -> Tensor:
        if self.world.size == 1:
            flat = weight.flatten()
        else:
            size = -(-weight.numel() // self.world.size)
            flat = pad(weight.flatten(), (0, size * self.world.size - weight.numel()))
            flat = flat[self.world.rank * size : (self.world.rank + 1) * size].clone()
        return _in_host_memory(flat, weight.device) if self.on_host else flat


class HostWeights:
    """Weights that never change, in host memory, pinned. The device has a copy only while they are used.

    They are copied to the device alone: after a use that copy is dropped.
    """

    def __init__(self, weights: Iterable[Tensor], device: torch.device):
        self.device, self._weights = device, list({id(w): w for w in weights}.values())
        for weight in self._weights:
            weight.data = _in_host_memory(weight.data, device)
        self._host = [weight.data for weight in self._weights]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Have them on the device. Kernels that still read them when this ends are not disturbed."""
        for weight, host in zip(self._weights, self._host):
            weight.data = _on_device(host, self.device)
        try:
            yield
        finally:
            for weight, host in zip(self._weights, self._host):
                weight.data = host


def _in_host_memory(x: Tensor, device: torch.device) -> Tensor:
    """Return x on the host, pinned for copies to a GPU; x itself if the device is the host."""
    return x if device.type == "cpu" else x.cpu().pin_memory()


def _on_device(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=True)
