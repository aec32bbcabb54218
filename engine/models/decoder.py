"""The base class of all families: sizes, running a range of layers, the head's weight.

Shapes: T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models.attend import Attend, causal_attend, row_attend
from engine.models.fused import block_step
from engine.models.length_limit import check_length, length_limit
from engine.models.quantised import weight_of
from engine.models.rotary import Rotations, rotations_of
from engine.models.rounded_rows import add_rows, rows_to_add
from kernels.common.codes import Codes

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def head_size_of(config: PretrainedConfig) -> int:
    """Return head_dim, or hidden_size / num_attention_heads if the config has none."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def window_of(config: PretrainedConfig, index: int) -> int | None:
    """Return how many positions a layer sees, itself included; None for all before it.

    Gemma, Qwen and Cohere list the type of each layer; Mistral's sliding_window is for all of them.
    """
    kinds = getattr(config, "layer_types", None)
    sliding = kinds is None or kinds[index] == "sliding_attention"
    return getattr(config, "sliding_window", None) if sliding else None


def check_activation(given: str, *supported: str) -> None:
    """UserError for an activation that a family does not compute."""
    if given not in supported:
        raise UserError(
            f"the activation is {given!r}: only {supported[0]} is supported in this family: choose another model"
        )


class Decoder(nn.Module):
    """The base of a language model. A family adds `embedding`, `layers`, `final_norm` and `head`.

    A block has `config`, `index` (its place in the whole model), `rotary` (the Rotary of its heads; None without one)
    and `forward(h_TD, rotation, attend) -> h_TD`, where rotation is the cos and sin of `rotary`.
    """

    embedding: nn.Embedding
    layers: nn.ModuleList
    final_norm: nn.Module
    head: nn.Linear | None
    trunk_dtype = "model"  # or int8, int4: how the frozen layers' weights are stored (engine/models/quantised.py)
    embedding_dtype = "model"  # and how the embedding and the head are

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self.config = config
        self.num_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_size = head_size_of(config)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{self.num_heads} heads cannot be shared by {self.num_kv_heads} key/value heads: "
                "correct num_key_value_heads in config.json"
            )
        self.vocab_size = config.vocab_size
        limit = length_limit(config)
        self.max_length = limit.tokens if limit else None

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return h_TD of the tokens, the input of layer 0."""
        return self.embedding(batch.tokens_T)

    def rotations(self, positions_T: Tensor) -> Rotations:
        """Return cos and sin of the positions for each Rotary of the layers; empty without rotary embedding."""
        return rotations_of(self.layers, positions_T)

    def run(
        self, h_TD: Tensor, batch: PackedBatch, start: int, stop: int, attend: Attend | None = None,
        rotations: Rotations | None = None, recompute: bool = False,
    ) -> Tensor:  # fmt: skip
        """Run layers start to stop-1 and return h_TD.

        attend defaults to causal attention within each sequence of the batch, rotations to those of the batch's
        positions. With recompute, only the input of each layer is kept for its backward, which runs the layer's forward
        a second time: gradients are equal to the bit. Raises UserError for a sequence longer than the model serves.
        """
        assert 0 <= start <= stop <= self.num_layers, (start, stop, self.num_layers)
        return self.run_layers(
            [self.layers[i] for i in range(start, stop)], h_TD, batch, attend, rotations, recompute=recompute
        )

    @staticmethod
    def run_layers(
        layers: Sequence[nn.Module], h_TD: Tensor, batch: PackedBatch, attend: Attend | None = None,
        rotations: Rotations | None = None, recompute: bool = False,
    ) -> Tensor:  # fmt: skip
        """Run the given blocks in order and return h_TD. They may be held outside the model.

        Without an attend of the caller's, positions of prompts that the batch says are equal are run once; their h must
        be equal.
        """
        if not len(layers):
            return h_TD
        first = layers[0]
        check_length(first.config, batch.max_len)
        step = block_step(first, h_TD, attend)
        shared = batch.shared if attend is None and rotations is None else None
        if shared:
            h_TD, attend = shared.take(h_TD), row_attend(batch, shared)
            batch = PackedBatch.of_singles(batch.tokens_T[shared.token_U], batch.positions_T[shared.token_U])
        tokens, position_T = h_TD.shape[0], batch.positions_T
        if rotations is None and (count := rows_to_add(h_TD)):
            h_TD, position_T, attend = add_rows(h_TD, batch, attend, count)
        attend = attend or causal_attend(batch)
        rotations = rotations_of(layers, position_T) if rotations is None else rotations
        if recompute and torch.is_grad_enabled():
            step = partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False)  # nothing here is random
        for block in layers:
            h_TD = step(block, h_TD, rotations.get(block.rotary), attend)
        return shared.spread(h_TD[:tokens]) if shared else h_TD[:tokens]

    def norm(self, h_TD: Tensor) -> Tensor:
        """Apply the final norm: norm(h) @ head_weight.T are the logits."""
        return self.final_norm(h_TD)

    @property
    def head_weight(self) -> Tensor | Codes:
        """Return the LM head's weight [V, D] as it is stored; if tied, the embedding's. UserError without a head."""
        if self.config.tie_word_embeddings:
            return weight_of(self.embedding)
        if self.head is None:
            raise UserError("a reward model was saved without a language head: pass the directory of a language model")
        return weight_of(self.head)
