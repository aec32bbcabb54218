"""Shared by the Triton kernels: float32 products, rounding, blocks, autotuning, and whether the interpreter runs."""

from __future__ import annotations

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


def tuned(kernel, table: dict[int, list[triton.Config]], smallest: triton.Config, key: list[str]) -> dict:
    """Return the autotuned kernel for each element size in bytes. Each new value of `key` tries all configs once.

    The interpreter cannot time kernels and gets the smallest config. The chosen config changes only the rounding of
    results: no two programs of a kernel add to one sum.
    """
    candidates = {size: [smallest] for size in table} if INTERPRET.value else table
    return {size: triton.autotune(configs, key=key)(kernel) for size, configs in candidates.items()}
