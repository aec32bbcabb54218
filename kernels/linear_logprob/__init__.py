"""Log-probability, logsumexp and entropy of a linear layer's softmax, without the logits of the whole batch.

With z_TV = (h_TD W_VD^T + bias_V) / temperature and p its softmax over the vocabulary, for every token:

    logsumexp = log sum_j e^(z_j)          logprob = z_target - logsumexp          entropy = -sum_j p_j log p_j
    kl = sum_j p_j (log p_j - log p_ref_j)

`reference` is this in plain PyTorch. `autograd` is the function; what it needs of the vocabulary comes from a walk over
its blocks, by `bfloat16` (C++, built on first use) or by `blocks` (torch's products, with the passes of `cpu` in C++ or
of `eager` in PyTorch: any device, and where there is no compiler, which is said once).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear_logprob import bfloat16
from kernels.linear_logprob.autograd import LinearLogprob
from kernels.linear_logprob.reference import linear_logprob_pair_reference, linear_logprob_reference

__all__ = [
    "linear_logits",
    "linear_logprob",
    "linear_logprob_pair",
    "linear_logprob_pair_reference",
    "linear_logprob_reference",
]

WIDENED_AT_ONCE = 1 << 22  # numbers of W whose float32 copies are held at a time, where no kernel was built


def linear_logprob(
    h_TD: Tensor, W_VD: Tensor, target_T: Tensor, temperature: float = 1.0, bias_V: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the target, logsumexp of the tempered logits, entropy in nats: float32 [T] each.

    h_TD [T, D] and W_VD [V, D] of one dtype, float32 or bfloat16, in any layout; target_T int64 [T]; bias_V [V], a
    constant. Differentiable through all three in h, and in W when it requires a gradient. Select the rows you need
    first: a column that is not asked for costs nothing. Beyond inputs, outputs and gradients it takes less than
    64 MiB, whatever T and V.
    """
    _check(h_TD, W_VD, target_T, temperature)
    return LinearLogprob.apply(h_TD, W_VD, target_T, temperature, bias_V, None)


def linear_logprob_pair(
    h_TD: Tensor,
    W_VD: Tensor,
    target_T: Tensor,
    ref_TD: Tensor,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """linear_logprob of a policy and of a reference in one walk over W, and the divergence between the two.

    ref_TD [T, D] are the reference's hidden states, a constant: no gradient reaches them, nor W through them. Returns
    float32 [T] each: logprob, logsumexp and entropy of the policy, logprob of the reference, and the divergence
    KL(policy || reference) over the whole vocabulary in nats; differentiable in h (and W) through all but the
    reference's logprob.
    """
    _check(h_TD, W_VD, target_T, temperature)
    assert ref_TD.shape == h_TD.shape and ref_TD.dtype == h_TD.dtype, (ref_TD.shape, ref_TD.dtype)
    return LinearLogprob.apply(h_TD, W_VD, target_T, temperature, bias_V, ref_TD.detach())


def linear_logits(h_TD: Tensor, W_VD: Tensor) -> Tensor:
    """h W^T [T, V] in float32 whatever the dtype of both, for a few rows that are sampled from. No gradient.

    A bfloat16 product rounds each logit to 8 bits, which loses more than all layers before it.
    """
    if h_TD.dtype == torch.float32:
        return h_TD @ W_VD.T
    if h_TD.device.type == "cuda":
        return torch.mm(h_TD, W_VD.T, out_dtype=torch.float32)
    if bfloat16.available(h_TD):
        return bfloat16.logits(h_TD, W_VD)
    blocks = W_VD.split(max(WIDENED_AT_ONCE // W_VD.shape[1], 1))
    return torch.cat([h_TD.float() @ W_BD.float().T for W_BD in blocks], 1)


def _check(h_TD: Tensor, W_VD: Tensor, target_T: Tensor, temperature: float) -> None:
    assert h_TD.dtype == W_VD.dtype, f"hidden states are {h_TD.dtype}, the head is {W_VD.dtype}"
    assert h_TD.shape[1] == W_VD.shape[1] and target_T.shape == h_TD.shape[:1], (h_TD.shape, W_VD.shape, target_T.shape)
    assert temperature > 0, temperature
