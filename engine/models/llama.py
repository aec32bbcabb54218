"""LLaMA and its family (Mistral, Qwen2, Qwen3, SmolLM3): RMSNorm, rotary positions, grouped heads, a gated MLP.

Shapes: T tokens, D model, H heads, G key/value heads, K head size, N inner size of the MLP, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from engine.models.attend import Attend, AttentionOptions
from engine.models.decoder import Decoder, check_activation, head_size_of, window_of
from engine.models.layers import RMSNorm, embedding, swiglu
from engine.models.rotary import Rotary, Rotation, rotate

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Traits(NamedTuple):
    """The differences between members of the family."""

    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Traits:
        bias = getattr(config, "attention_bias", False)
        return {
            "llama": cls(qkv_bias=bias, out_bias=bias, mlp_bias=getattr(config, "mlp_bias", False)),
            "mistral": cls(),
            "qwen2": cls(qkv_bias=True),
            "qwen3": cls(qkv_bias=bias, out_bias=bias, qk_norm=True),
            "smollm3": cls(qkv_bias=bias, out_bias=bias, mlp_bias=getattr(config, "mlp_bias", False)),
        }[config.model_type]


class LlamaBlock(nn.Module):
    """One layer; `index` is its layer number, also for a block held outside the model."""

    def __init__(self, config: PretrainedConfig, index: int):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
        self.config, self.index = config, index
        self.head_size = head_size_of(config)
        rotated = getattr(config, "no_rope_layers", None)  # SmolLM3: 1 for a layer with rotary embedding, 0 without
        self.rotary = Rotary.from_config(config, self.head_size) if rotated is None or rotated[index] else None
        self.options = AttentionOptions(window=window_of(config, index))
        q_width, kv_width = config.num_attention_heads * self.head_size, config.num_key_value_heads * self.head_size
        traits = Traits.from_config(config)
        self.attention_norm = RMSNorm(width, eps)
        self.q = nn.Linear(width, q_width, bias=traits.qkv_bias)
        self.k = nn.Linear(width, kv_width, bias=traits.qkv_bias)
        self.v = nn.Linear(width, kv_width, bias=traits.qkv_bias)
        self.q_norm = RMSNorm(self.head_size, eps) if traits.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_size, eps) if traits.qk_norm else nn.Identity()
        self.attention_out = nn.Linear(q_width, width, bias=traits.out_bias)
        self.mlp_norm = RMSNorm(width, eps)
        self.gate = nn.Linear(width, inner, bias=traits.mlp_bias)
        self.up = nn.Linear(width, inner, bias=traits.mlp_bias)
        self.down = nn.Linear(inner, width, bias=traits.mlp_bias)

    def forward(self, h_TD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        x_TD = self.attention_norm(h_TD)
        q_THK, k_TGK, v_TGK = (linear(x_TD).unflatten(1, (-1, self.head_size)) for linear in (self.q, self.k, self.v))
        q_THK, k_TGK = self.q_norm(q_THK), self.k_norm(k_TGK)
        if rotation is not None:
            q_THK, k_TGK = rotate(q_THK, *rotation), rotate(k_TGK, *rotation)
        # softmax(q k^T / sqrt(K)) v, causal, over the window if there is one; H/G query heads share a key/value head
        o_THK = attend(self.index, q_THK, k_TGK, v_TGK, self.options)
        h_TD = h_TD + self.attention_out(o_THK.flatten(1))

        x_TD = self.mlp_norm(h_TD)
        x_TN = swiglu(self.gate(x_TD), self.up(x_TD))  # silu(gate) * up
        return h_TD + self.down(x_TN)


class Llama(Decoder):
    """A language model of the family. Its interface is described in engine/models/__init__.py.

    Raises UserError for heads that do not divide, an activation other than silu, or an unsupported rotary scaling.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        check_activation(config.hidden_act, "silu", "swish")
        self.embedding = embedding(self.vocab_size, self.hidden_size)
        self.layers = nn.ModuleList(LlamaBlock(config, i) for i in range(self.num_layers))
        self.final_norm = RMSNorm(self.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(self.hidden_size, self.vocab_size, bias=False)
