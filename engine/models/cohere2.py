"""Cohere 2 (Command R7B, Tiny Aya): attention and MLP side by side, LayerNorm without bias, rotary on windows only.

Shapes: T tokens, D model, H heads, G key/value heads, K head size, N inner size of the MLP, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from engine.models.attend import Attend, AttentionOptions
from engine.models.decoder import Decoder, check_activation, head_size_of, window_of
from engine.models.layers import embedding, swiglu
from engine.models.rotary import Rotary, Rotation, rotate_interleaved

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Cohere2Block(nn.Module):
    """One layer; `index` is its layer number, also for a block held outside the model."""

    def __init__(self, config: PretrainedConfig, index: int):
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.attention_bias
        self.config, self.index = config, index
        self.head_size = head_size_of(config)
        window = window_of(config, index)
        self.options = AttentionOptions(window=window)
        self.rotary = None if window is None else Rotary.from_config(config, self.head_size)
        q_width, kv_width = config.num_attention_heads * self.head_size, config.num_key_value_heads * self.head_size
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps, bias=False)
        self.q = nn.Linear(width, q_width, bias=bias)
        self.k = nn.Linear(width, kv_width, bias=bias)
        self.v = nn.Linear(width, kv_width, bias=bias)
        self.attention_out = nn.Linear(q_width, width, bias=bias)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, h_TD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        x_TD = self.norm(h_TD)
        q_THK, k_TGK, v_TGK = (linear(x_TD).unflatten(1, (-1, self.head_size)) for linear in (self.q, self.k, self.v))
        if rotation is not None:
            q_THK, k_TGK = rotate_interleaved(q_THK, *rotation), rotate_interleaved(k_TGK, *rotation)
        # softmax(q k^T / sqrt(K)) v, causal, over the layer's window
        o_THK = attend(self.index, q_THK, k_TGK, v_TGK, self.options)
        x_TN = swiglu(self.gate(x_TD), self.up(x_TD))  # silu(gate) * up
        return h_TD + self.attention_out(o_THK.flatten(1)) + self.down(x_TN)


class ScaledLayerNorm(nn.LayerNorm):
    """LayerNorm without bias, times `scale`: Cohere scales its logits, and a head is linear."""

    def __init__(self, size: int, eps: float, scale: float):
        super().__init__(size, eps=eps, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Cohere2(Decoder):
    """A Cohere 2 language model. Its interface is described in engine/models/__init__.py.

    The final norm contains the logit scale. Raises UserError for heads that do not divide or another activation.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        check_activation(config.hidden_act, "silu", "swish")
        self.embedding = embedding(self.vocab_size, self.hidden_size)
        self.layers = nn.ModuleList(Cohere2Block(config, i) for i in range(self.num_layers))
        self.final_norm = ScaledLayerNorm(self.hidden_size, config.layer_norm_eps, config.logit_scale)
        self.head = None if config.tie_word_embeddings else nn.Linear(self.hidden_size, self.vocab_size, bias=False)
