"""The keys and values of sequences in generation: one slot a sequence, memory taken once.

Shapes: L layers, B slots, G key/value heads, N positions a slot, K head size (with ALiBi's extra dimensions behind it).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from engine.batch import PackedBatch
from engine.models.attend import Attend
from kernels.attention import attention
from kernels.attention.fold import EXTRA, fold_key, fold_query


class KVCache:
    """Slots 0 to n-1 are in use: the last sequence takes the place of one that leaves, so they stay in front."""

    def __init__(self, model, num_slots: int, max_len: int, dtype: torch.dtype, device: torch.device):
        self.head_size = model.head_size
        self.scale = model.head_size**-0.5
        self.alibi = model.config.model_type == "bloom"
        width = self.head_size + (EXTRA if self.alibi else 0)
        shape = (model.num_layers, num_slots, model.num_kv_heads, max_len, width)
        self.k_LBGNK = torch.zeros(shape, dtype=dtype, device=device)
        self.v_LBGNK = torch.zeros(shape, dtype=dtype, device=device)
        self.max_len = max_len
        self.columns_N = torch.arange(max_len, device=device)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's first `length` positions over another's."""
        for x in (self.k_LBGNK, self.v_LBGNK):
            x[:, target, :, :length] = x[:, source, :, :length]

    def _write(self, layer: int, slot_T: Tensor, position_T: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> None:
        if self.alibi:
            k_TGK, v_TGK = fold_key(k_TGK, position_T), pad(v_TGK, (0, EXTRA))
        self.k_LBGNK[layer][slot_T, :, position_T] = k_TGK
        self.v_LBGNK[layer][slot_T, :, position_T] = v_TGK

    def prefill(self, batch: PackedBatch, slot_T: Tensor) -> Attend:
        """Attention for whole prompts: causal within the pack, keeping keys and values in the given slots."""

        def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, slopes_H: Tensor | None) -> Tensor:
            self._write(layer, slot_T, batch.positions_T, k_TGK, v_TGK)
            return attention(q_THK, k_TGK, v_TGK, batch.cu_seqlens, batch.lengths, slopes_H)

        return attend

    def decode(self, position_S: Tensor, longest: int) -> Attend:
        """Attention for one new token in each of the first S slots, at the given positions (int64 [S]).

        `longest` is the largest position + 1, known on the host: what lies behind it is not read.
        """
        used = position_S.shape[0]
        slot_S = torch.arange(used, device=position_S.device)
        visible_SN = (self.columns_N[:longest] <= position_S[:, None])[:, None, None]

        def attend(layer: int, q_SHK: Tensor, k_SGK: Tensor, v_SGK: Tensor, slopes_H: Tensor | None) -> Tensor:
            self._write(layer, slot_S, position_S, k_SGK, v_SGK)
            if slopes_H is not None:
                q_SHK = fold_query(q_SHK, slopes_H, self.scale)
            # Query heads of one key/value head ride together as rows, so that its cache is read once.
            groups = self.k_LBGNK.shape[2]
            out = scaled_dot_product_attention(
                q_SHK.unflatten(1, (groups, -1)),
                self.k_LBGNK[layer, :used, :, :longest],
                self.v_LBGNK[layer, :used, :, :longest],
                attn_mask=visible_SN,
                scale=self.scale,
            )
            return out.flatten(1, 2)[..., : self.head_size]

        return attend
