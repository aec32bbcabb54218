"""BLOOM: LayerNorm on the embeddings, ALiBi attention, tanh-GELU, a head tied to the embeddings.

Shapes: T tokens, D model, H heads, K = D/H head size, N = 4D, V vocabulary. The dropout rates of a config are ignored:
a policy with dropout would disagree with its own rollouts.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models.attend import Attend, AttentionOptions
from engine.models.decoder import Decoder
from engine.models.layers import embedding

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@cache
def alibi_slopes(num_heads: int, device: torch.device) -> Tensor:
    """Return the slope of each head, float32 [H] (Press et al. 2022), cached for the life of the process.

    If H is a power of two: 2^(-8/H), 2^(-16/H), ... 2^-8. Otherwise the slopes of the power of two below H, then every
    second slope of the power of two above.
    """
    below = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    slopes += [2 ** (-4 * i / below) for i in range(1, 2 * (num_heads - below), 2)]
    # Generation may call first: autograd cannot save an inference tensor for a later backward.
    with torch.inference_mode(False):
        return torch.tensor(slopes, dtype=torch.float32, device=device)


class BloomBlock(nn.Module):
    """One layer; `index` is its layer number, also for a block held outside the model."""

    rotary = None  # positions enter through ALiBi, inside attention

    def __init__(self, config: PretrainedConfig, index: int):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_epsilon
        self.config, self.index = config, index
        self.num_heads = config.num_attention_heads
        self.norm_feeds_residual = config.apply_residual_connection_post_layernorm
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)  # rows in the order [H, 3, K], as Hugging Face stores them
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp_up = nn.Linear(width, 4 * width)
        self.mlp_down = nn.Linear(4 * width, width)

    def slopes(self, device: torch.device) -> Tensor:
        """Return the ALiBi slope of each head, float32 [H]. Attention adds slope * key position to the scores."""
        return alibi_slopes(self.num_heads, device)

    def forward(self, h_TD: Tensor, rotation: None, attend: Attend) -> Tensor:
        residual_TD = self.attention_norm(h_TD) if self.norm_feeds_residual else h_TD
        q_THK, k_THK, v_THK = self.qkv(self.attention_norm(h_TD)).unflatten(1, (self.num_heads, 3, -1)).unbind(2)
        # softmax(q k^T / sqrt(K) + slope * key position) v, causal
        o_THK = attend(self.index, q_THK, k_THK, v_THK, AttentionOptions(self.slopes(h_TD.device)))
        h_TD = residual_TD + self.attention_out(o_THK.flatten(1))

        residual_TD = self.mlp_norm(h_TD) if self.norm_feeds_residual else h_TD
        x_TN = gelu(self.mlp_up(self.mlp_norm(h_TD)), approximate="tanh")
        return residual_TD + self.mlp_down(x_TN)


class Bloom(Decoder):
    """A BLOOM language model. Its interface is described in engine/models/__init__.py.

    Raises UserError if the width is not a multiple of the heads.
    """

    def __init__(self, config: PretrainedConfig):
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"hidden_size is {config.hidden_size}, not a multiple of {config.num_attention_heads} heads: "
                "correct hidden_size or n_head in config.json"
            )
        super().__init__(config)
        self.embedding = embedding(self.vocab_size, self.hidden_size)
        self.embedding_norm = nn.LayerNorm(self.hidden_size, eps=config.layer_norm_epsilon)
        self.layers = nn.ModuleList(BloomBlock(config, i) for i in range(self.num_layers))
        self.final_norm = nn.LayerNorm(self.hidden_size, eps=config.layer_norm_epsilon)
        self.head = None if config.tie_word_embeddings else nn.Linear(self.hidden_size, self.vocab_size, bias=False)

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return h_TD of the tokens, the input of layer 0."""
        return self.embedding_norm(self.embedding(batch.tokens_T))
