"""The attention function of a block: its signature, and the default, causal attention within a pack."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from engine.batch import PackedBatch
from kernels.attention import attention

# attend(layer_index, q_THK, k_TGK, v_TGK, slopes_H) -> o_THK. layer_index is absolute, rotary is already applied,
# slopes_H is float32 [H] with ALiBi and None without, and the scale is 1/sqrt(K).
Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def causal_attend(batch: PackedBatch) -> Attend:
    """Return causal attention within each sequence of the batch, without a cache."""

    def attend(_: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, slopes_H: Tensor | None) -> Tensor:
        return attention(q_THK, k_TGK, v_TGK, batch.cu_seqlens, batch.lengths, slopes_H)

    return attend
