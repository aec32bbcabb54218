"""linear_logprob as an autograd function: results from the totals of a forward walk, factors for the backward walk.

The target's logit is a float32 dot product of two rows, computed apart from the walk. It also replaces the walk's own
value in the sums: from two different roundings, the logprob of a confident token could come out above 0.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.common.codes import Codes
from kernels.linear_logprob import bfloat16, blocks


def walk_for(h_TD: Tensor, W_VD: Tensor | Codes) -> ModuleType:
    """Return the module whose `totals` and `write_gradients` walk over the vocabulary for these inputs."""
    if isinstance(W_VD, Codes):
        return blocks
    if h_TD.device.type == "cuda":
        from kernels.linear_logprob import fused  # imported here: triton is not installed everywhere

        return fused
    return bfloat16 if bfloat16.available(h_TD) else blocks


def _row_dots(h_TD: Tensor, W_VD: Tensor | Codes, target_T: Tensor) -> Tensor:
    """Return h_t . W[target_t], float32 [T]. Gathers 1 MiB of rows of W at a time."""
    rows = max(1, (1 << 18) // W_VD.shape[1])
    wide = torch.promote_types(h_TD.dtype, torch.float32)
    pairs = zip(h_TD.split(rows), target_T.split(rows))
    return torch.cat([torch.linalg.vecdot(h.to(wide), blocks.rows_of(W_VD, target).to(wide)) for h, target in pairs])


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """Return weight * x, and 0 where weight is 0, even if x is infinite there."""
    return torch.where(weight > 0, weight * x, 0)


def statistics(h_TD: Tensor, W_VD: Tensor | Codes, target_T: Tensor, scale: float) -> dict[str, Tensor]:
    """Return float64 [T] each: logprob, entropy, and the logsumexp as the sum of top and log_sum."""
    totals_3T, walked_T = walk_for(h_TD, W_VD).totals(h_TD, W_VD, scale, target_T)
    m, s, q = totals_3T
    exact = _row_dots(h_TD, W_VD, target_T).double() * scale
    # Replace the walk's target logit by the exact one in all three totals.
    top = torch.maximum(m, exact)
    old, before, after = (m - top).exp(), (walked_T - top).exp(), (exact - top).exp()
    total = (s * old - before + after).maximum(after)
    first = (q + s * (m - top)) * old - _times(before, walked_T - top) + _times(after, exact - top)
    log_sum = total.log()
    return {"logprob": exact - top - log_sum, "entropy": log_sum - first / total, "top": top, "log_sum": log_sum}


class LinearLogprob(torch.autograd.Function):
    """Return logprob, logsumexp and entropy, float32 [T] each. See `kernels.linear_logprob.linear_logprob`."""

    @staticmethod
    def forward(ctx, h_TD, W_VD, target_T, temperature):
        scale = 1 / temperature
        target_T = target_T.contiguous()
        out = statistics(h_TD, W_VD, target_T, scale)
        logsumexp = out["top"] + out["log_sum"]
        top = out["top"].float()
        columns = (out["logprob"], out["entropy"], top, logsumexp - top)
        ctx.scale, ctx.codes = scale, W_VD if isinstance(W_VD, Codes) else None
        weight = W_VD if ctx.codes is None else None  # codes have no gradient
        ctx.save_for_backward(h_TD, weight, target_T, *(column.float() for column in columns))
        return out["logprob"].float(), logsumexp.float(), out["entropy"].float()

    @staticmethod
    @once_differentiable
    def backward(ctx, g_logprob_T, g_logsumexp_T, g_entropy_T):
        h_TD, weight, target_T, logprob, entropy, top, log_sum = ctx.saved_tensors
        W_VD = weight if ctx.codes is None else ctx.codes
        # d logprob / dz_j = [j = target] - p_j; d logsumexp / dz_j = p_j; d entropy / dz_j = -p_j (log p_j + entropy).
        # Together p_j (a + b log p_j), and at the target g_logprob more.
        a, b = g_logsumexp_T - g_entropy_T * entropy, -g_entropy_T
        at_target = a + b * logprob.clamp(min=-1e4)
        # -expm1(log p) for 1 - p: a confident token loses no digits.
        target_dz_T = ctx.scale * (at_target * logprob.exp() - g_logprob_T * logprob.expm1())
        per_token_4T = torch.stack([top, log_sum, ctx.scale * (a - g_logprob_T), ctx.scale * b])
        inputs, columns = (h_TD, W_VD, ctx.scale), (per_token_4T, target_T, target_dz_T)
        return *_gradients(inputs, columns, *ctx.needs_input_grad[:2]), None, None


def _gradients(inputs: tuple, columns: tuple, with_dh: bool, with_dW: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return dh and dW, None where not wanted, from as few walks as the memory for a float32 sum of dh allows."""
    h_TD, W_VD, _ = inputs
    walk = walk_for(h_TD, W_VD)
    dh_TD = torch.empty(h_TD.shape, dtype=h_TD.dtype, device=h_TD.device) if with_dh else None
    dW_VD = torch.empty(W_VD.shape, dtype=W_VD.dtype, device=W_VD.device) if with_dW else None
    tokens = walk.chunk_tokens(h_TD)
    chunks = [slice(start, start + tokens) for start in range(0, max(1, len(h_TD)), tokens)]
    if len(chunks) == 1:
        walk.write_gradients(*inputs, *columns, chunks, dh_TD, dW_VD)
        return dh_TD, dW_VD
    # dh is a sum over the vocabulary and dW over the tokens: there is memory for the float32 sums of one at a time.
    for chunk in chunks if with_dh else ():
        walk.write_gradients(*inputs, *columns, [chunk], dh_TD, None)
    if with_dW:
        walk.write_gradients(*inputs, *columns, chunks, None, dW_VD)
    return dh_TD, dW_VD
