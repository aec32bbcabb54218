"""What the Triton kernels share: the product, and whether they run in Triton's interpreter instead of on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b):
    """a @ b, summed in float32. Of float32 numbers too: by default they would be cut to tf32."""
    if INTERPRET:  # it keeps bfloat16 as 16-bit integers, and would multiply those
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


def tuned(kernel, table: dict[int, list[triton.Config]], smallest: triton.Config, key: list[str]) -> dict:
    """By bytes an element, the kernel with its candidate configs: each new `key` tries them all once.

    The interpreter can try nothing and gets the smallest. Kernels take no part in each other's sums, whatever the
    config, so that which one wins changes the rounding of results, never their meaning.
    """
    candidates = {size: [smallest] for size in table} if INTERPRET.value else table
    return {size: triton.autotune(configs, key=key)(kernel) for size, configs in candidates.items()}
