"""rotate_and_write on CUDA, in Triton: a program takes one head of one row, its queries, its keys or its values."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.common.norm import Norm
from kernels.common.triton import rounded


@triton.jit
def _halves(x, i, HALF: tl.constexpr, K: tl.constexpr):
    """The first and second half of K numbers, [P] each; zeros after an odd K's last."""
    a = tl.load(x + i, mask=i < HALF, other=0.0).to(tl.float32)
    b = tl.load(x + HALF + i, mask=i < K - HALF, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _turn(
    x, weight, cos, sin, i, eps,
    HALF: tl.constexpr, K: tl.constexpr, ROTATE: tl.constexpr, NORM: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """The halves of a head after its norm and its rotation. A thread reads and writes the same numbers."""
    a, b = _halves(x, i, HALF, K)
    if NORM:
        scale = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / K + eps)
        weight_a, weight_b = _halves(weight, i, HALF, K)
        if CENTRED:
            weight_a, weight_b = weight_a + 1.0, weight_b + 1.0
        a, b = a * scale * weight_a, b * scale * weight_b
    if ROTATE:
        c = tl.load(cos + i, mask=i < HALF, other=0.0)
        s = tl.load(sin + i, mask=i < HALF, other=0.0)
        a, b = a * c - b * s, b * c + a * s
    return a, b


@triton.jit
def _store(out, a, b, i, HALF: tl.constexpr, K: tl.constexpr):
    tl.store(out + i, rounded(a, out.dtype.element_ty), mask=i < HALF)
    tl.store(out + HALF + i, rounded(b, out.dtype.element_ty), mask=i < K - HALF)


@triton.jit
def _rotate_and_write(
    q, k, v, cos, sin, q_weight, k_weight, k_pages, v_pages, page, slot, q_heads, kv_heads,
    q_row, q_head, k_row, k_head, v_row, v_head,
    k_page_step, k_head_step, k_slot_step, v_page_step, v_head_step, v_slot_step, q_eps, k_eps,
    K: tl.constexpr, HALF: tl.constexpr, P: tl.constexpr, ROTATE: tl.constexpr, NORM: tl.constexpr,
    CENTRED: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """program_id(1) counts the heads of the queries, of the keys, and with WRITE of the values."""
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, P)
    cos, sin = cos + t * HALF, sin + t * HALF
    if head < q_heads:
        x = q + t * q_row + head * q_head
        a, b = _turn(x, q_weight, cos, sin, i, q_eps, HALF, K, ROTATE, NORM, CENTRED)
        _store(x, a, b, i, HALF, K)
    elif head < q_heads + kv_heads:
        g = head - q_heads
        x = k + t * k_row + g * k_head
        a, b = _turn(x, k_weight, cos, sin, i, k_eps, HALF, K, ROTATE, NORM, CENTRED)
        if WRITE:
            x = k_pages + tl.load(page + t) * k_page_step + tl.load(slot + t) * k_slot_step + g * k_head_step
        _store(x, a, b, i, HALF, K)
    else:
        if WRITE:
            g = head - q_heads - kv_heads
            a, b = _halves(v + t * v_row + g * v_head, i, HALF, K)
            x = v_pages + tl.load(page + t) * v_page_step + tl.load(slot + t) * v_slot_step + g * v_head_step
            _store(x, a, b, i, HALF, K)


def rotate_and_write_triton(
    q_THK: Tensor | None,
    k_TGK: Tensor,
    v_TGK: Tensor,
    rotation: tuple[Tensor, Tensor] | None = None,
    norms: tuple[Norm, Norm] | None = None,
    pages: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> None:
    """See `kernels.rotary.rotate_and_write`."""
    rows, kv_heads, size = k_TGK.shape
    changes = rotation is not None or norms is not None
    if not rows or not (changes or pages):
        return
    half = (size + 1) // 2
    # What is absent has the place of a tensor that is not read.
    q_heads, q_THK = (q_THK.shape[1], q_THK) if changes and q_THK is not None else (0, k_TGK)
    cos, sin = rotation or (k_TGK, k_TGK)
    q_norm, k_norm = norms or (Norm(k_TGK, None, 0.0), Norm(k_TGK, None, 0.0))
    k_PGNK, v_PGNK, page_T, slot_T = pages or (k_TGK[:, :, None], v_TGK[:, :, None], k_TGK, k_TGK)
    for x in (q_THK, k_TGK, v_TGK, k_PGNK, v_PGNK):
        assert x.stride(-1) == 1 or size == 1, x.stride()
    if rotation is not None:
        assert size % 2 == 0 and cos.is_contiguous() and sin.is_contiguous(), (size, cos.stride(), sin.stride())
    assert q_norm.centred == k_norm.centred
    _rotate_and_write[(rows, q_heads + kv_heads * (2 if pages else 1))](
        q_THK, k_TGK, v_TGK, cos, sin, q_norm.weight_D, k_norm.weight_D, k_PGNK, v_PGNK, page_T, slot_T,
        q_heads, kv_heads, *q_THK.stride()[:2], *k_TGK.stride()[:2], *v_TGK.stride()[:2],
        *k_PGNK.stride()[:3], *v_PGNK.stride()[:3], q_norm.eps, k_norm.eps,
        K=size, HALF=half, P=triton.next_power_of_2(half), ROTATE=rotation is not None, NORM=norms is not None,
        CENTRED=q_norm.centred, WRITE=pages is not None, num_warps=1,
    )  # fmt: skip
