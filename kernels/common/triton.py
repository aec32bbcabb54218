"""Shared by the Triton kernels: float32 products, rounding, blocks, configs, and whether the interpreter runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import triton
import triton.language as tl

INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b):
    """a @ b, summed in float32. Float32 inputs keep all their bits; by default Triton would cut them to tf32."""
    if INTERPRET:  # the interpreter stores bfloat16 as 16-bit integers and would multiply those
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Float32 x rounded to the nearest number of the dtype, to even on a tie."""
    if INTERPRET and dtype == tl.bfloat16:  # the interpreter would cut
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def blocks_of(T, column_blocks, M: tl.constexpr, GROUP: tl.constexpr):
    """This program's block of rows and block of columns. Programs that run together share both inputs in the L2 cache.

    T rows, M of them a block; GROUP blocks of rows run through the columns together.
    """
    row_blocks = tl.cdiv(T, M)
    group = tl.program_id(0) // (GROUP * column_blocks)
    inside = tl.program_id(0) % (GROUP * column_blocks)
    size = tl.minimum(GROUP, row_blocks - group * GROUP)
    return group * GROUP + inside % size, inside // size


class Config(NamedTuple):
    """How a kernel is launched: tile sizes, warps, pipeline stages, and the KiB of shared memory that takes at most.

    The KiB are those of sm_80 to sm_89. sm_90 takes up to half as much again, and has 227.
    """

    sizes: dict[str, int]
    warps: int
    stages: int
    shared: int

    @property
    def options(self) -> dict[str, int]:
        """The keyword arguments of the launch."""
        return {**self.sizes, "num_warps": self.warps, "num_stages": self.stages}


def fitting(configs: Sequence[Config], limit: int) -> Config:
    """Return the first config that takes at most `limit` bytes of shared memory, else the last."""
    return next((config for config in configs if config.shared * 1024 <= limit), configs[-1])


def chosen(configs: Sequence[Config], device: torch.device) -> Config:
    """Return the first config for which the device has the shared memory. The interpreter gets the last, smallest one.

    They are not timed: another config may round differently, and a resumed run must give the same bits.
    """
    if INTERPRET.value:
        return configs[-1]
    return fitting(configs, torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


@contextmanager
def trying(configs: list[Config], i: int) -> Iterator[None]:
    """Put config i first, to measure it. Programs that resume or compare runs never do that."""
    configs.insert(0, configs.pop(i))
    try:
        yield
    finally:
        configs.insert(i, configs.pop(0))
