"""The attention function of a block: its signature, causal attention within a pack, the default, and over a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from engine.batch import PackedBatch
from engine.shared_rows import SharedRows
from kernels.attention import attention
from kernels.attention_decode import write_pages


class AttentionOptions(NamedTuple):
    """How one layer attends: the last arguments of the attention kernels, in their order."""

    slopes_H: Tensor | None = None  # float32 [H], ALiBi
    scale: float | None = None  # of the scores; None is 1/sqrt(K)
    window: int | None = None  # a position sees this many positions, itself included; None is all before it


# attend(layer_index, q_THK, k_TGK, v_TGK, options) -> o_THK. layer_index is absolute, rotary is already applied.
Attend = Callable[[int, Tensor, Tensor, Tensor, AttentionOptions], Tensor]


class Pages(NamedTuple):
    """A layer's pages of keys and values [P, G, N, K], and page and slot of each row, int64 [T]."""

    k_PGNK: Tensor
    v_PGNK: Tensor
    page_T: Tensor
    slot_T: Tensor


class CacheAttend(NamedTuple):
    """Attention over a paged cache, in two steps: a block may write keys and values itself, then read."""

    pages: Callable[[int], Pages]  # of a layer
    read: Callable[[int, Tensor, AttentionOptions], Tensor]  # layer_index, q_THK, options -> o_THK

    def __call__(
        self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, options: AttentionOptions
    ) -> Tensor:  # fmt: skip
        write_pages(k_TGK, v_TGK, *self.pages(layer))
        return self.read(layer, q_THK, options)


def causal_attend(batch: PackedBatch) -> Attend:
    """Return causal attention within each sequence of the batch, without a cache."""

    def attend(_: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, options: AttentionOptions) -> Tensor:
        return attention(q_THK, k_TGK, v_TGK, batch.cu_seqlens, batch.lengths, *options)

    return attend


def row_attend(batch: PackedBatch, shared: SharedRows) -> Attend:
    """Return causal attention within each sequence of the batch, from rows to rows."""
    attend_tokens = causal_attend(batch)

    def attend(index: int, q_UHK: Tensor, k_UGK: Tensor, v_UGK: Tensor, options: AttentionOptions) -> Tensor:
        return shared.take(attend_tokens(index, *map(shared.spread, (q_UHK, k_UGK, v_UGK)), options))

    return attend
