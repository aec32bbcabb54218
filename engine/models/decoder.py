"""The base class of all families: sizes, running a range of layers, the head's weight.

Shapes: T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models.attend import Attend, causal_attend
from engine.models.fused import block_step
from engine.models.length_limit import check_length, length_limit
from engine.models.rotary import Rotation

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def head_size_of(config: PretrainedConfig) -> int:
    """Return head_dim, or hidden_size / num_attention_heads if the config has none."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class Decoder(nn.Module):
    """The base of a language model. A family adds `embedding`, `layers`, `final_norm` and `head`.

    A block has `config`, `index` (its place in the whole model), `rotation(positions_T)` (what it computes from the
    positions once per step for all layers, or None) and `forward(h_TD, rotation, attend) -> h_TD`.
    """

    embedding: nn.Embedding
    layers: nn.ModuleList
    final_norm: nn.Module
    head: nn.Linear | None

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self.config = config
        self.num_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_size = head_size_of(config)
        self.vocab_size = config.vocab_size
        limit = length_limit(config)
        self.max_length = limit.tokens if limit else None

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return h_TD of the tokens, the input of layer 0."""
        return self.embedding(batch.tokens_T)

    def rotation(self, positions_T: Tensor) -> Rotation | None:
        """Return what the layers compute from the positions; None if attention alone uses positions (ALiBi)."""
        return self.layers[0].rotation(positions_T)

    def run(
        self, h_TD: Tensor, batch: PackedBatch, start: int, stop: int, attend: Attend | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:  # fmt: skip
        """Run layers start to stop-1 and return h_TD.

        attend defaults to causal attention within each sequence of the batch, rotation to that of the batch's
        positions. Raises UserError for a sequence longer than the model serves.
        """
        assert 0 <= start <= stop <= self.num_layers, (start, stop, self.num_layers)
        return self.run_layers([self.layers[i] for i in range(start, stop)], h_TD, batch, attend, rotation)

    @staticmethod
    def run_layers(
        layers: Sequence[nn.Module], h_TD: Tensor, batch: PackedBatch, attend: Attend | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:  # fmt: skip
        """Run the given blocks in order and return h_TD. They may be held outside the model."""
        if not len(layers):
            return h_TD
        first = layers[0]
        check_length(first.config, batch.max_len)
        step = block_step(first, h_TD, attend)
        attend, rotation = attend or causal_attend(batch), rotation or first.rotation(batch.positions_T)
        for block in layers:
            h_TD = step(block, h_TD, rotation, attend)
        return h_TD

    def norm(self, h_TD: Tensor) -> Tensor:
        """Apply the final norm: norm(h) @ head_weight.T are the logits."""
        return self.final_norm(h_TD)

    @property
    def head_weight(self) -> Tensor:
        """W_VD: the head's weight, or the embedding's own tensor if tied. UserError for a model without a head."""
        if self.config.tie_word_embeddings:
            return self.embedding.weight
        if self.head is None:
            raise UserError("a reward model was saved without a language head: pass the directory of a language model")
        return self.head.weight
