"""Shared by the Triton kernels: a float32 product, autotuning, and whether Triton's interpreter runs them."""

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


def tuned(kernel, table: dict[int, list[triton.Config]], smallest: triton.Config, key: list[str]) -> dict:
    """Return the autotuned kernel for each element size in bytes. Each new value of `key` tries all configs once.

    The interpreter cannot time kernels and gets the smallest config. The chosen config changes only the rounding of
    results: no two programs of a kernel add to one sum.
    """
    candidates = {size: [smallest] for size in table} if INTERPRET.value else table
    return {size: triton.autotune(configs, key=key)(kernel) for size, configs in candidates.items()}
