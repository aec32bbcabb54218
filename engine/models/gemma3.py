"""Gemma 3: four norms a layer, norms of queries and keys, windows on most layers, two rotary bases, a GELU gate.

Shapes: T tokens, D model, H heads, G key/value heads, K head size, N inner size of the MLP, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models.attend import Attend, AttentionOptions
from engine.models.decoder import Decoder, check_activation, head_size_of, window_of
from engine.models.layers import ZeroCenteredRMSNorm, embedding, geglu
from engine.models.rotary import Rotary, Rotation, rotate

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Gemma3Block(nn.Module):
    """One layer; `index` is its layer number, also for a block held outside the model."""

    def __init__(self, config: PretrainedConfig, index: int):
        super().__init__()
        width, inner, eps, bias = (
            config.hidden_size,
            config.intermediate_size,
            config.rms_norm_eps,
            config.attention_bias,
        )
        self.config, self.index = config, index
        self.head_size = head_size_of(config)
        # Layers with a window have a rotary base of their own.
        self.rotary = Rotary.from_config(config, self.head_size, config.layer_types[index])
        self.options = AttentionOptions(scale=config.query_pre_attn_scalar**-0.5, window=window_of(config, index))
        q_width, kv_width = config.num_attention_heads * self.head_size, config.num_key_value_heads * self.head_size
        self.attention_norm = ZeroCenteredRMSNorm(width, eps)
        self.q = nn.Linear(width, q_width, bias=bias)
        self.k = nn.Linear(width, kv_width, bias=bias)
        self.v = nn.Linear(width, kv_width, bias=bias)
        self.q_norm = ZeroCenteredRMSNorm(self.head_size, eps)
        self.k_norm = ZeroCenteredRMSNorm(self.head_size, eps)
        self.attention_out = nn.Linear(q_width, width, bias=bias)
        self.attention_out_norm = ZeroCenteredRMSNorm(width, eps)
        self.mlp_norm = ZeroCenteredRMSNorm(width, eps)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.mlp_out_norm = ZeroCenteredRMSNorm(width, eps)

    def forward(self, h_TD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        x_TD = self.attention_norm(h_TD)
        q_THK, k_TGK, v_TGK = (linear(x_TD).unflatten(1, (-1, self.head_size)) for linear in (self.q, self.k, self.v))
        q_THK, k_TGK = rotate(self.q_norm(q_THK), *rotation), rotate(self.k_norm(k_TGK), *rotation)
        # softmax(q k^T / sqrt(query_pre_attn_scalar)) v, causal, over the layer's window
        o_THK = attend(self.index, q_THK, k_TGK, v_TGK, self.options)
        h_TD = self.attention_out_norm(self.attention_out(o_THK.flatten(1)), residual=h_TD)  # h + norm(attention)

        x_TD = self.mlp_norm(h_TD)
        x_TN = geglu(self.gate(x_TD), self.up(x_TD))  # gelu(gate) * up
        return self.mlp_out_norm(self.down(x_TN), residual=h_TD)  # h + norm(MLP)


class Gemma3(Decoder):
    """A Gemma 3 language model, or the text part of one that also reads images. Interface: engine/models/__init__.py.

    Raises UserError for heads that do not divide, another activation, soft caps, or attention in both directions.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        check_activation(config.hidden_activation, "gelu_pytorch_tanh")
        for name in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
            if getattr(config, name, None):
                raise UserError(f"{name} is {getattr(config, name)}: only models without it are supported")
        self.embedding = embedding(self.vocab_size, self.hidden_size)
        self.layers = nn.ModuleList(Gemma3Block(config, i) for i in range(self.num_layers))
        self.final_norm = ZeroCenteredRMSNorm(self.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(self.hidden_size, self.vocab_size, bias=False)

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return h_TD of the tokens, times sqrt(D) rounded to the dtype of the weights, as in training."""
        h_TD = self.embedding(batch.tokens_T)
        return h_TD * torch.tensor(self.hidden_size**0.5, dtype=h_TD.dtype, device="cpu")
