"""Specification of rotation, and of what comes with it, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.common.norm import Norm


def rotate_reference(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return a new tensor with the result of `kernels.rotary.rotate_in_place`."""
    a, b = x_THK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rotate_and_write_reference(
    q_THK: Tensor | None,
    k_TGK: Tensor,
    v_TGK: Tensor,
    rotation: tuple[Tensor, Tensor] | None = None,
    norms: tuple[Norm, Norm] | None = None,
    pages: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> None:
    """See `kernels.rotary.rotate_and_write`."""
    changed = []
    for x_THK, norm in zip((q_THK, k_TGK), norms or (None, None), strict=True):
        if x_THK is None:
            continue
        y_THK = x_THK.to(torch.promote_types(x_THK.dtype, torch.float32))
        if norm is not None:
            weight_K = norm.weight_D.to(y_THK) + float(norm.centred)
            y_THK = functional.rms_norm(y_THK, weight_K.shape, weight_K, norm.eps)
        if rotation is not None:
            y_THK = rotate_reference(y_THK, *rotation)
        changed.append((x_THK, y_THK.to(x_THK.dtype)))
    for x_THK, y_THK in changed if pages is None else changed[:-1]:
        x_THK.copy_(y_THK)
    if pages is not None:
        k_PGNK, v_PGNK, page_T, slot_T = pages
        k_PGNK[page_T, :, slot_T] = changed[-1][1]
        v_PGNK[page_T, :, slot_T] = v_TGK
