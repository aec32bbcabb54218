"""linear_logprob as an autograd function: results from the totals of a forward walk, factors for the backward walk."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.common.codes import Codes
from kernels.linear_logprob import bfloat16, blocks
from kernels.linear_logprob.columns import Results


def walk_for(h_TD: Tensor, W_VD: Tensor | Codes) -> ModuleType:
    """Return the module that walks over the vocabulary for these inputs: `statistics`, `factors`, `write_gradients`."""
    if isinstance(W_VD, Codes):
        return blocks
    if h_TD.device.type == "cuda":
        from kernels.linear_logprob import fused  # imported here: triton is not installed everywhere

        return fused
    return bfloat16 if bfloat16.available(h_TD) else blocks


class LinearLogprob(torch.autograd.Function):
    """Return logprob, logsumexp and entropy, float32 [T] each. See `kernels.linear_logprob.linear_logprob`."""

    @staticmethod
    def forward(ctx, h_TD, W_VD, target_T, temperature):
        ctx.set_materialize_grads(False)
        target_T = target_T.contiguous()
        ctx.scale, ctx.codes = 1 / temperature, W_VD if isinstance(W_VD, Codes) else None
        results = walk_for(h_TD, W_VD).statistics(h_TD, W_VD, ctx.scale, target_T)
        weight = W_VD if ctx.codes is None else None  # codes have no gradient
        ctx.save_for_backward(h_TD, weight, target_T, *results)
        return results[:3]

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        h_TD, weight, target_T, *results = ctx.saved_tensors
        W_VD = weight if ctx.codes is None else ctx.codes
        per_token_4T, target_dz_T = walk_for(h_TD, W_VD).factors(Results(*results), gradients, ctx.scale)
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
