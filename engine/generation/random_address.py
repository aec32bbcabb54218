"""Counter-based random numbers: one uniform per (seed, prompt, sample, position), independent of the batch.

Shapes: S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(x: int) -> int:
    """Convert an unsigned 64-bit constant to int64."""
    return x - (1 << 64) if x >= 1 << 63 else x


_STEP = _signed(0x9E3779B97F4A7C15)
_MULTIPLY_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit moves every output bit."""
    x = (x ^ _shift(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift(x, 27)) * _MULTIPLY_2
    return x ^ _shift(x, 31)


def address(seed: int, prompt_S: Tensor, sample_S: Tensor) -> Tensor:
    """Return int64 [S], the stream of each (seed, prompt, sample)."""
    x = torch.full_like(prompt_S, _signed(seed % (1 << 64)))
    for part in (prompt_S, sample_S):
        x = _mix((x + _STEP) ^ _mix(part + _STEP))
    return x


def uniform(address_S: Tensor, position_S: Tensor) -> Tensor:
    """Return float64 [S] in [0, 1) with 53 random bits: the number at a position of each stream."""
    bits = _mix(address_S + (position_S + 1) * _STEP)
    return _shift(bits, 11).double() * 2.0**-53
