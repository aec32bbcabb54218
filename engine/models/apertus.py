"""Apertus: RMSNorm, rotary positions, norms of queries and keys, and an MLP without a gate, with xIELU.

Shapes: T tokens, D model, H heads, G key/value heads, K head size, N inner size of the MLP, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from engine.models.attend import Attend, AttentionOptions
from engine.models.decoder import Decoder, check_activation, head_size_of
from engine.models.layers import RMSNorm, embedding
from engine.models.rotary import Rotary, Rotation, rotate

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class XIELU(nn.Module):
    """The expanded integral of ELU (Huang and Schlag 2024), with two trained numbers, kept positive by a softplus.

    x > 0: p x^2 + x/2, else: n (e^x - 1 - x) + x/2, with p = softplus(alpha_p) and n = 1/2 + softplus(alpha_n).
    """

    initial = {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.3))}

    def __init__(self):
        super().__init__()
        self.alpha_p = nn.Parameter(torch.full((1,), self.initial["alpha_p"]))
        self.alpha_n = nn.Parameter(torch.full((1,), self.initial["alpha_n"]))

    def forward(self, x: Tensor) -> Tensor:
        p, n = softplus(self.alpha_p), 0.5 + softplus(self.alpha_n)
        # The published minimum of -1e-6 keeps expm1 away from 0 and from large x, whose branch is not taken.
        return torch.where(x > 0, p * x * x, n * (torch.expm1(x.clamp(max=-1e-6)) - x)) + 0.5 * x


class ApertusBlock(nn.Module):
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
        self.rotary, self.options = Rotary.from_config(config, self.head_size), AttentionOptions()
        q_width, kv_width = config.num_attention_heads * self.head_size, config.num_key_value_heads * self.head_size
        self.attention_norm = RMSNorm(width, eps)
        self.q = nn.Linear(width, q_width, bias=bias)
        self.k = nn.Linear(width, kv_width, bias=bias)
        self.v = nn.Linear(width, kv_width, bias=bias)
        self.q_norm = RMSNorm(self.head_size, eps)
        self.k_norm = RMSNorm(self.head_size, eps)
        self.attention_out = nn.Linear(q_width, width, bias=bias)
        self.mlp_norm = RMSNorm(width, eps)
        self.up = nn.Linear(width, inner, bias=False)
        self.xielu = XIELU()
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, h_TD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        x_TD = self.attention_norm(h_TD)
        q_THK, k_TGK, v_TGK = (linear(x_TD).unflatten(1, (-1, self.head_size)) for linear in (self.q, self.k, self.v))
        q_THK, k_TGK = rotate(self.q_norm(q_THK), *rotation), rotate(self.k_norm(k_TGK), *rotation)
        # softmax(q k^T / sqrt(K)) v, causal; H/G query heads share a key/value head
        o_THK = attend(self.index, q_THK, k_TGK, v_TGK, self.options)
        h_TD = h_TD + self.attention_out(o_THK.flatten(1))
        return h_TD + self.down(self.xielu(self.up(self.mlp_norm(h_TD))))


class Apertus(Decoder):
    """An Apertus language model. Its interface is described in engine/models/__init__.py.

    Raises UserError for heads that do not divide, another activation, or an unsupported rotary scaling.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        check_activation(config.hidden_act, "xielu")
        self.embedding = embedding(self.vocab_size, self.hidden_size)
        self.layers = nn.ModuleList(ApertusBlock(config, i) for i in range(self.num_layers))
        self.final_norm = RMSNorm(self.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(self.hidden_size, self.vocab_size, bias=False)
