"""BLOOM: LayerNorm on the embeddings, ALiBi attention, tanh-GELU, a head tied to the embeddings.

Shapes: T tokens, D model, H heads, K = D/H head size, V vocabulary. The dropout rates of a config are ignored: a policy
with dropout would disagree with its own rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models.attend import Attend, causal_attend
from engine.models.fused import BlockOps, block_ops

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@cache
def alibi_slopes(num_heads: int, device: torch.device) -> Tensor:
    """float32 [H]: the slope of each head (Press et al. 2022), kept for the life of the process.

    With H a power of two, 2^(-8/H), 2^(-16/H), ... 2^-8. Otherwise those of the power of two below, then every second
    slope of the power of two above.
    """
    below = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    slopes += [2 ** (-4 * i / below) for i in range(1, 2 * (num_heads - below), 2)]
    # Generation may be the first caller: an inference tensor kept here could not be saved for a backward afterwards.
    with torch.inference_mode(False):
        return torch.tensor(slopes, dtype=torch.float32, device=device)


class BloomBlock(nn.Module):
    """One layer. `index` is its place in the whole model, wherever the block is held."""

    def __init__(self, config: PretrainedConfig, index: int):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_epsilon
        self.config, self.index = config, index
        self.num_heads = config.num_attention_heads
        self.norm_feeds_residual = config.apply_residual_connection_post_layernorm
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)  # rows in the order [H, 3, K], as Hugging Face keeps them
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp_up = nn.Linear(width, 4 * width)
        self.mlp_down = nn.Linear(4 * width, width)

    def forward(self, h_TD: Tensor, slopes_H: Tensor, attend: Attend, ops: BlockOps) -> Tensor:
        residual_TD = self.attention_norm(h_TD) if self.norm_feeds_residual else h_TD
        qkv_TN = ops.norm_linear(self.attention_norm, self.qkv, h_TD)
        q_THK, k_THK, v_THK = qkv_TN.unflatten(1, (self.num_heads, 3, -1)).unbind(2)
        o_THK = attend(self.index, q_THK, k_THK, v_THK, slopes_H)
        h_TD = ops.add_linear(residual_TD, self.attention_out, o_THK.flatten(1))
        residual_TD = self.mlp_norm(h_TD) if self.norm_feeds_residual else h_TD
        return ops.add_linear(residual_TD, self.mlp_down, ops.norm_linear_gelu(self.mlp_norm, self.mlp_up, h_TD))


class Bloom(nn.Module):
    """A BLOOM language model in the engine's interface: embed, run a range of layers, norm, head weight.

    Raises UserError when the width is not a multiple of the heads.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"hidden_size is {config.hidden_size}, not a multiple of {config.num_attention_heads} heads: "
                "correct hidden_size or n_head in config.json"
            )
        self.config = config
        self.num_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.num_heads = self.num_kv_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.vocab_size = config.vocab_size
        self.max_length = None
        self.embedding = nn.Embedding(self.vocab_size, self.hidden_size)
        self.embedding_norm = nn.LayerNorm(self.hidden_size, eps=config.layer_norm_epsilon)
        self.layers = nn.ModuleList(BloomBlock(config, i) for i in range(self.num_layers))
        self.final_norm = nn.LayerNorm(self.hidden_size, eps=config.layer_norm_epsilon)
        self.head = None if config.tie_word_embeddings else nn.Linear(self.hidden_size, self.vocab_size, bias=False)

    def embed(self, batch: PackedBatch) -> Tensor:
        """h_TD of the tokens, the input of layer 0."""
        return self.embedding_norm(self.embedding(batch.tokens_T))

    def rotation(self, positions_T: Tensor) -> None:
        """The layers know of positions through attention alone."""

    def run(
        self, h_TD: Tensor, batch: PackedBatch, start: int, stop: int, attend: Attend | None = None,
        rotation: None = None,
    ) -> Tensor:  # fmt: skip
        """Layers start to stop-1. attend defaults to causal attention within each sequence of the batch."""
        assert 0 <= start <= stop <= self.num_layers, (start, stop, self.num_layers)
        return self.run_layers([self.layers[i] for i in range(start, stop)], h_TD, batch, attend)

    @staticmethod
    def run_layers(
        layers: Sequence[BloomBlock], h_TD: Tensor, batch: PackedBatch, attend: Attend | None = None
    ) -> Tensor:
        """The given blocks in turn, wherever they are held: nothing else of the model is needed."""
        if not len(layers):
            return h_TD
        ops, attend = block_ops(h_TD, attend, layers[0].qkv.weight), attend or causal_attend(batch)
        for block in layers:
            h_TD = block(h_TD, alibi_slopes(block.num_heads, h_TD.device), attend, ops)
        return h_TD

    def norm(self, h_TD: Tensor) -> Tensor:
        """The final LayerNorm: norm(h) @ head_weight.T are the logits."""
        return self.final_norm(h_TD)

    @property
    def head_weight(self) -> Tensor:
        """W_VD: the embedding's own tensor when tied, as BLOOM's is. Raises UserError for a reward model without."""
        if self.config.tie_word_embeddings:
            return self.embedding.weight
        if self.head is None:
            raise UserError("a reward model was saved without a language head: pass the directory of a language model")
        return self.head.weight
