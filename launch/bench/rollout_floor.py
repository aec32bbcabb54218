"""Lower bound of a rollout step's time: bytes over measured bandwidth, or operations over the measured GEMM rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.generation import huge_pages
from engine.generation.generate import Step
from kernels.common.bench import median_s
from kernels.skinny_linear import fits, skinny_linear

READ_BYTES = 512 << 20  # larger than any cache
REPEATS = 7
GEMM_SIDES = {"cpu": 2048, "cuda": 8192}  # a GPU multiplies the smaller ones before the next launch arrives


@dataclass(frozen=True)
class Machine:
    """Bytes read and floating-point operations per second, as measured in this run with its threads."""

    bandwidth: float
    flops: float


@torch.no_grad()
def measure(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure the fastest read of a large tensor, and a large square product in dtype.

    The readers are a sum, a dot product, and the product of one row with a matrix by PyTorch and, on a CPU, by our
    kernel.
    """
    x = torch.empty(READ_BYTES // 4, device=device)
    huge_pages.ask(x)
    x.fill_(1.0)
    side = GEMM_SIDES[device.type]
    matrix, row = x.view(-1, side), torch.ones(1, side, device=device)
    readers = [x.sum, lambda: torch.dot(x, x), lambda: matrix @ row[0]]
    if fits(row, matrix):
        readers.append(lambda: skinny_linear(row, [matrix], [None]))
    a = torch.randn(side, side, device=device).to(dtype)
    works = {str(i): reader for i, reader in enumerate(readers)} | {"product": lambda: a @ a}
    seconds = median_s(works, device.type, REPEATS)
    product = seconds.pop("product")
    return Machine(READ_BYTES / min(seconds.values()), 2 * side**3 / product)


@dataclass(frozen=True)
class ModelCost:
    """Bytes and operations per token and per cache position.

    A step reads all weights once (embedding rows are not counted) and each cache position that its rows attend to once.
    A token multiplies all weights of the layers, and those of the head if it is sampled.
    """

    layer_bytes: int
    head_bytes: int
    position_bytes: int
    layer_flops: int
    head_flops: int
    position_flops: int

    @classmethod
    def of(cls, model) -> ModelCost:
        weights = sum(p.numel() for p in model.layers.parameters())
        matrices = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
        head, size = model.head_weight, model.head_weight.element_size()
        return cls(
            weights * size,
            head.numel() * size,
            2 * model.num_layers * model.num_kv_heads * model.head_size * size,
            2 * matrices,
            2 * head.numel(),
            4 * model.num_layers * model.num_heads * model.head_size,
        )

    def floor_s(self, step: Step, machine: Machine) -> float:
        """Return the lower bound of a step in seconds: the larger of its memory and arithmetic times."""
        nbytes = self.layer_bytes + self.head_bytes + self.position_bytes * step.positions_read
        flops = self.layer_flops * (step.rows + step.prompt_tokens) + self.head_flops * step.rows
        flops += self.position_flops * step.positions_read
        return max(nbytes / machine.bandwidth, flops / machine.flops)


def decode_share(steps: Sequence[Step], cost: ModelCost, machine: Machine) -> float:
    """Return the floor over the measured time, summed over the steps that only decode."""
    decoding = [s for s in steps if not s.prompt_tokens and s.rows]
    return sum(cost.floor_s(s, machine) for s in decoding) / max(sum(s.seconds for s in decoding), 1e-9)
