"""Log-probability, logsumexp and entropy of a linear layer's softmax, without holding the logits of the whole batch.

With z_TV = h_TD W_VD^T / temperature and p its softmax over the vocabulary, for every token:

    logsumexp = log sum_j e^(z_j)          logprob = z_target - logsumexp          entropy = -sum_j p_j log p_j

`reference` is the specification in plain PyTorch. `autograd` is the fast function. It walks over the vocabulary in
blocks: in Triton (`fused`, CUDA), in C++ (`bfloat16`, CPU), or with torch's products and the passes of `cpu` (C++) or
`eager` (PyTorch) (`blocks`, any device). C++ is compiled on first use; without a compiler one warning says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.common.codes import Codes
from kernels.linear_logprob import bfloat16
from kernels.linear_logprob.autograd import LinearLogprob
from kernels.linear_logprob.blocks import NARROW_BLOCK_ELEMENTS as DEQUANTISED_AT_ONCE
from kernels.linear_logprob.reference import linear_logprob_reference

__all__ = ["DEQUANTISED_AT_ONCE", "linear_logits", "linear_logprob", "linear_logprob_reference"]

WIDENED_AT_ONCE = 1 << 22  # elements of W converted to float32 at a time, where no C++ kernel was built
# BLAS copies the matrix into its own layout first. Of a whole head this copy goes to memory and back; of so many rows,
# for each thread, it stays in the cache.
ROWS_AT_ONCE = 512
CACHED_ELEMENTS = 1 << 22  # of a head that is small enough for the cache as it is


def linear_logprob(
    h_TD: Tensor, W_VD: Tensor | Codes, target_T: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target's log-probability, the logsumexp of z and the entropy in nats: float32 [T] each.

    h_TD [T, D] and W_VD [V, D] have one dtype (float32, bfloat16 or float16) and any layout; target_T int64 [T]. All
    three outputs are differentiable in h, and in W where it requires a gradient. Of Codes, the values of one block of
    rows exist at a time. Select the rows you need first: the others then cost nothing. Needs less than 64 MiB beyond
    inputs, outputs and gradients, for any T and V.
    """
    _check(h_TD, W_VD, target_T, temperature)
    return LinearLogprob.apply(h_TD, W_VD, target_T, temperature)


def linear_logits(h_TD: Tensor, W_VD: Tensor | Codes, out_TV: Tensor | None = None) -> Tensor:
    """Return the logits h W^T, float32 [T, V] for inputs of any dtype. No gradient. For the few rows to sample from.

    On a CPU they may be written to out_TV, memory that is there already: filling new pages takes as long as a product.
    A bfloat16 product would round each logit to 8 bits, a larger error than that of all layers before it.
    """
    if isinstance(W_VD, Codes):
        out_TV = h_TD.new_empty(len(h_TD), W_VD.shape[0], dtype=torch.float32) if out_TV is None else out_TV
        rows = max(DEQUANTISED_AT_ONCE // W_VD.shape[1], 1)
        for start in range(0, W_VD.shape[0], rows):
            part = slice(start, start + rows)
            out_TV[:, part] = linear_logits(h_TD, W_VD.rows(part).values())
        return out_TV
    if h_TD.dtype == torch.float32:
        if h_TD.device.type == "cpu" and len(h_TD) > 1 and W_VD.numel() > CACHED_ELEMENTS:
            return _logits_by_blocks(h_TD, W_VD, out_TV)
        return torch.mm(h_TD, W_VD.T, out=out_TV)
    if h_TD.device.type == "cuda":
        return torch.mm(h_TD, W_VD.T, out_dtype=torch.float32)
    if bfloat16.available(h_TD):
        return bfloat16.logits(h_TD, W_VD, out_TV)
    blocks = W_VD.split(max(WIDENED_AT_ONCE // W_VD.shape[1], 1))
    return torch.cat([h_TD.float() @ W_BD.float().T for W_BD in blocks], 1)


def _logits_by_blocks(h_TD: Tensor, W_VD: Tensor, out_TV: Tensor | None) -> Tensor:
    out_TV = h_TD.new_empty(len(h_TD), len(W_VD)) if out_TV is None else out_TV
    rows = ROWS_AT_ONCE * torch.get_num_threads()
    for W_BD, out_TB in zip(W_VD.split(rows), out_TV.split(rows, 1), strict=True):
        torch.mm(h_TD, W_BD.T, out=out_TB)
    return out_TV


def _check(h_TD: Tensor, W_VD: Tensor | Codes, target_T: Tensor, temperature: float) -> None:
    assert h_TD.dtype == W_VD.dtype, f"hidden states are {h_TD.dtype}, the head is {W_VD.dtype}"
    assert h_TD.shape[1] == W_VD.shape[1] and target_T.shape == h_TD.shape[:1], (h_TD.shape, W_VD.shape, target_T.shape)
    assert temperature > 0, temperature
