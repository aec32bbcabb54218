"""linear_logprob as an autograd function: what follows from the totals of a walk, and what a backward walk is told.

The target's own logit is a float32 dot product of two rows, and takes the place of the walk's in the sums too: taken
from different roundings, a confident token's logprob could come out above 0.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.linear_logprob import bfloat16, blocks


def walk_for(h_TD: Tensor) -> ModuleType:
    """The module whose `totals` and `sweep` walk over the vocabulary for such hidden states."""
    if h_TD.device.type == "cuda":
        from kernels.linear_logprob import fused  # imported here: triton is not installed everywhere

        return fused
    return bfloat16 if bfloat16.available(h_TD) else blocks


def _row_dots(h_TD: Tensor, W_VD: Tensor, target_T: Tensor) -> Tensor:
    """float32 [T]: h_t . W[target_t], a MiB of rows at a time."""
    rows = max(1, (1 << 18) // W_VD.shape[1])
    wide = torch.promote_types(h_TD.dtype, torch.float32)
    pairs = zip(h_TD.split(rows), target_T.split(rows))
    return torch.cat([torch.linalg.vecdot(h.to(wide), W_VD[target].to(wide)) for h, target in pairs])


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """weight x, and 0 where the weight is: also where x is infinite there."""
    return torch.where(weight > 0, weight * x, 0)


def _with_exact(m: Tensor, s: Tensor, found: Tensor, exact: Tensor) -> tuple[Tensor, ...]:
    """The maximum and the sum with the exact logit in the found one's place.

    Then the factors that do the same to other sums: of the old sum, of the found term, and of the exact one.
    """
    top = torch.maximum(m, exact)
    old, before, after = (m - top).exp(), (found - top).exp(), (exact - top).exp()
    return top, (s * old - before + after).maximum(after), old, before, after


def statistics(
    h_TD: Tensor, W_VD: Tensor, target_T: Tensor, scale: float, bias_V: Tensor | None, ref_TD: Tensor | None
) -> dict[str, Tensor]:
    """float64 [T] each: logprob, entropy, the logsumexp in two parts, top and log_sum.

    With a reference also ref_logprob, kl, and apart: the policy's logsumexp less the reference's.
    """
    kept_6T, found_3T = walk_for(h_TD).totals(h_TD, ref_TD, W_VD, bias_V, scale, target_T)
    m, s, q, ref_m, ref_s, u = kept_6T

    def exact_logit(h: Tensor) -> Tensor:
        logit_T = _row_dots(h, W_VD, target_T).double()
        return (logit_T if bias_V is None else logit_T + bias_V[target_T]) * scale

    exact = exact_logit(h_TD)
    top, total, old, before, after = _with_exact(m, s, found_3T[0], exact)
    first = (q + s * (m - top)) * old - _times(before, found_3T[0] - top) + _times(after, exact - top)
    log_sum = total.log()
    out = {"logprob": exact - top - log_sum, "entropy": log_sum - first / total, "top": top, "log_sum": log_sum}
    if ref_TD is not None:
        ref_exact = exact_logit(ref_TD)
        ref_top, ref_total, *_ = _with_exact(ref_m, ref_s, found_3T[1], ref_exact)
        difference = u * old - _times(before, found_3T[2]) + _times(after, exact - ref_exact)
        out["ref_logprob"] = ref_exact - ref_top - ref_total.log()
        out["apart"] = (top - ref_top) + (log_sum - ref_total.log())
        out["kl"] = difference / total - out["apart"]
    return out


class LinearLogprob(torch.autograd.Function):
    """logprob, logsumexp, entropy; with ref_TD also ref_logprob and kl. Nothing flows into bias_V and ref_TD."""

    @staticmethod
    def forward(ctx, h_TD, W_VD, target_T, temperature, bias_V, ref_TD):
        scale = 1 / temperature
        bias_V = None if bias_V is None else bias_V.detach().float().contiguous()
        target_T = target_T.contiguous()
        out = statistics(h_TD, W_VD, target_T, scale, bias_V, ref_TD)
        logsumexp = out["top"] + out["log_sum"]
        top = out["top"].float()
        columns = {"logprob": out["logprob"], "entropy": out["entropy"], "top": top, "log_sum": logsumexp - top}
        if ref_TD is not None:
            at_target = out["logprob"] - out["ref_logprob"] - out["kl"]
            columns |= {"kl": out["kl"], "apart": out["apart"], "kl_at_target": at_target}
        ctx.names = list(columns)
        ctx.scale = scale
        ctx.save_for_backward(h_TD, W_VD, target_T, bias_V, ref_TD, *(c.float() for c in columns.values()))
        outputs = [out["logprob"].float(), logsumexp.float(), out["entropy"].float()]
        if ref_TD is not None:
            outputs += [out["ref_logprob"].float(), out["kl"].float()]
            ctx.mark_non_differentiable(outputs[3])
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_logprob_T, g_logsumexp_T, g_entropy_T, g_ref_logprob_T=None, g_kl_T=None):
        h_TD, W_VD, target_T, bias_V, ref_TD, *saved = ctx.saved_tensors
        column = dict(zip(ctx.names, saved))
        logprob, apart = column["logprob"], column.get("apart", torch.zeros_like(g_logprob_T))
        if g_kl_T is None or not g_kl_T.count_nonzero():
            ref_TD = None  # its logits are needed for the gradient of kl alone
        # d logprob / dz_j = [j = target] - p_j; d logsumexp / dz_j = p_j; d entropy / dz_j = -p_j (log p_j + entropy);
        # d kl / dz_j = p_j (log p_j - log p_ref_j - kl). Together p_j (a + b log p_j + c (log p_j - log p_ref_j)).
        a, b, c = g_logsumexp_T - g_entropy_T * column["entropy"], -g_entropy_T, torch.zeros_like(apart)
        at_target = a + b * logprob.clamp(min=-1e4)
        if ref_TD is not None:
            a, c = a - g_kl_T * column["kl"], g_kl_T
            at_target = at_target + g_kl_T * column["kl_at_target"]
        # 1 - p as -expm1(log p): of a confident token nothing is lost.
        target_dz_T = ctx.scale * (at_target * logprob.exp() - g_logprob_T * logprob.expm1())
        weights = [ctx.scale * (a - g_logprob_T), ctx.scale * b, ctx.scale * c]
        per_token_6T = torch.stack([column["top"], column["log_sum"], *weights, apart])
        columns = per_token_6T, target_T, target_dz_T
        inputs = h_TD, ref_TD, W_VD, bias_V, ctx.scale
        return *_gradients(inputs, columns, *ctx.needs_input_grad[:2]), None, None, None, None


def _gradients(inputs: tuple, columns: tuple, with_dh: bool, with_dW: bool) -> tuple[Tensor | None, Tensor | None]:
    """dh and dW from as few walks as the memory for a float32 sum of dh allows."""
    h_TD, _, W_VD, *_ = inputs
    walk = walk_for(h_TD)
    dh_TD = torch.empty(h_TD.shape, dtype=h_TD.dtype, device=h_TD.device) if with_dh else None
    dW_VD = torch.empty(W_VD.shape, dtype=W_VD.dtype, device=W_VD.device) if with_dW else None
    tokens = walk.chunk_tokens(h_TD)
    chunks = [slice(start, start + tokens) for start in range(0, max(1, len(h_TD)), tokens)]
    if len(chunks) == 1:
        walk.sweep(*inputs, *columns, chunks, dh_TD, dW_VD)
        return dh_TD, dW_VD
    # Not both at once: dh is summed over the vocabulary and dW over the tokens, and float32 sums of one fit at a time.
    for chunk in chunks if with_dh else ():
        walk.sweep(*inputs, *columns, [chunk], dh_TD, None)
    if with_dW:
        walk.sweep(*inputs, *columns, chunks, None, dW_VD)
    return dh_TD, dW_VD
