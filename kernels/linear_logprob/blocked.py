"""linear_logprob in blocks of rows: a few MiB of logits exist at a time, and the backward computes them again."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 22  # logits held at a time: 16 MiB of float32


def linear_logprob(
    h_TD: Tensor, W_VD: Tensor, target_T: Tensor, temperature: float = 1.0, bias_V: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of softmax((h W^T + bias) / temperature), never holding [T, V].

    h_TD [T, D] and W_VD [V, D], float32 or bfloat16; target_T int64 [T]; bias_V [V], a constant.
    Returns float32 [T] each: log-probability of the target, logsumexp of the tempered logits, entropy in nats.
    Differentiable through all three in h, and in W when it requires a gradient. Select the rows you need first: a
    column that is not asked for costs nothing.
    """
    return _LinearLogprob.apply(h_TD, W_VD, target_T, temperature, bias_V)


def _logits(h: Tensor, W_VD: Tensor, temperature: float, bias_V: Tensor | None) -> Tensor:
    logits = (h @ W_VD.T).float()
    if bias_V is not None:
        logits += bias_V.float()
    return logits.div_(temperature) if temperature != 1.0 else logits


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_TD, W_VD, target_T, temperature, bias_V):
        rows = max(1, BLOCK_ELEMENTS // W_VD.shape[0])
        # The target's logit comes from a float32 dot of its own row: exact even where the product is bfloat16.
        target_logit_T = torch.empty(h_TD.shape[0], dtype=torch.float32, device=h_TD.device)
        logsumexp_T = torch.empty_like(target_logit_T)
        entropy_T = torch.empty_like(target_logit_T)
        for i in range(0, h_TD.shape[0], rows):
            block = slice(i, i + rows)
            logits = _logits(h_TD[block], W_VD, temperature, bias_V)
            lse = torch.logsumexp(logits, -1)
            logits -= lse[:, None]
            target_logit_T[block] = (h_TD[block].float() * W_VD[target_T[block]].float()).sum(-1)
            logsumexp_T[block] = lse
            entropy_T[block] = -torch.linalg.vecdot(logits.exp(), logits)
        if bias_V is not None:
            target_logit_T += bias_V[target_T].float()
        ctx.save_for_backward(h_TD, W_VD, target_T, bias_V, logsumexp_T, entropy_T)
        ctx.temperature = temperature
        return target_logit_T / temperature - logsumexp_T, logsumexp_T, entropy_T

    @staticmethod
    def backward(ctx, g_logprob_T, g_logsumexp_T, g_entropy_T):
        h_TD, W_VD, target_T, bias_V, logsumexp_T, entropy_T = ctx.saved_tensors
        rows = max(1, BLOCK_ELEMENTS // W_VD.shape[0])
        dh_TD = torch.empty_like(h_TD)
        dW_VD = torch.zeros_like(W_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with_entropy = bool(g_entropy_T.count_nonzero())
        for i in range(0, h_TD.shape[0], rows):
            block = slice(i, i + rows)
            log_p = _logits(h_TD[block], W_VD, ctx.temperature, bias_V).sub_(logsumexp_T[block, None])
            # d logprob / dz_j = [j = target] - p_j, d logsumexp / dz_j = p_j, d entropy / dz_j = -p_j (log p_j + H)
            weight = (g_logsumexp_T[block] - g_logprob_T[block])[:, None]
            if with_entropy:
                weight = weight - g_entropy_T[block, None] * (log_p + entropy_T[block, None])
            dz = log_p.exp_().mul_(weight)
            dz.scatter_add_(1, target_T[block, None], g_logprob_T[block, None])
            dz = dz.div_(ctx.temperature).to(h_TD.dtype)
            dh_TD[block] = dz @ W_VD
            if dW_VD is not None:
                dW_VD += dz.T @ h_TD[block]
        return dh_TD, None if dW_VD is None else dW_VD.to(W_VD.dtype), None, None, None
