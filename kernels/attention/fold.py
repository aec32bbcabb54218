"""ALiBi folded into extra head dimensions, so that a plain causal kernel serves it.

A bias of slope * position is a dot product of two extra dimensions: the query has the slope, the key its position.
bfloat16 keeps 8 significant bits, so the slope is written as three bfloat16 parts that sum to its float32 value, and
the position as 256 * hi + lo, each exact in bfloat16 up to position 65,535. The products are exact too, and the kernel
adds them up in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXTRA = 8  # 2 x 3 products, and two zeros to keep the head size a multiple of 8


def fold_query(q_THK: Tensor, slopes_H: Tensor, scale: float) -> Tensor:
    """Return queries [T, H, K] with the slopes (float32 [H]) appended: [T, H, K + 8]."""
    parts = _three_parts(slopes_H.float() / scale, q_THK.dtype)
    tail = torch.stack([*(p * 256 for p in parts), *parts, torch.zeros_like(parts[0]), torch.zeros_like(parts[0])], -1)
    return torch.cat([q_THK, tail.expand(q_THK.shape[0], -1, -1)], -1)


def fold_key(k_TGK: Tensor, positions_T: Tensor) -> Tensor:
    """Return keys [T, G, K] with their positions (integers [T]) appended: [T, G, K + 8]."""
    high = torch.div(positions_T, 256, rounding_mode="floor")
    low = positions_T - high * 256
    zero = torch.zeros_like(high)
    tail = torch.stack([high, high, high, low, low, low, zero, zero], -1).to(k_TGK.dtype)
    return torch.cat([k_TGK, tail[:, None].expand(-1, k_TGK.shape[1], -1)], -1)


def _three_parts(x_H: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return three tensors of `dtype` whose float32 sum is x to 24 bits."""
    parts, rest = [], x_H
    for _ in range(3):
        part = rest.to(dtype)
        parts.append(part)
        rest = rest - part.float()
    return parts
