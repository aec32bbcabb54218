"""Causal attention over packed sequences, with optional ALiBi and grouped key/value heads."""

from kernels.attention.cpu import attention_cpu
from kernels.attention.fold import fold_alibi
from kernels.attention.reference import attention_reference

__all__ = ["attention", "attention_reference", "fold_alibi"]


def attention(q_THK, k_TGK, v_TGK, cu_seqlens, lengths, slopes_H=None, scale=None):
    """Attend causally within each sequence of a pack.

    q_THK [T, H, K], k_TGK and v_TGK [T, G, K] with H a multiple of G, float32 or bfloat16; cu_seqlens int32 [S+1];
    lengths the same on the host; slopes_H float32 [H] adds slope * key position to the scores (Press et al. 2022; the
    usual -slope * distance differs by a constant a row, which softmax drops); scale defaults to 1/sqrt(K).
    Returns [T, H, K] in the dtype of q, differentiable in q, k and v.
    """
    return attention_cpu(q_THK, k_TGK, v_TGK, lengths, slopes_H, scale)
