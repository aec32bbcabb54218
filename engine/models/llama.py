"""LLaMA and its family (Mistral, Qwen2, Qwen3): RMSNorm, rotary positions, grouped heads, a gated MLP.

Shapes: T tokens, D model, H heads, G key/value heads, K head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models.attend import Attend, causal_attend
from engine.models.fused import BlockOps, block_ops
from engine.models.length_limit import check_length, length_limit
from engine.models.rotary import Rotary, Rotation, cos_sin
from kernels import bf16_passes

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Traits(NamedTuple):
    """What tells the members of the family apart."""

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
        }[config.model_type]


def head_size_of(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if bf16_passes.fits(x):
            return bf16_passes.rms_norm(x, self.weight, self.eps)
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class LlamaBlock(nn.Module):
    """One layer. `index` is its place in the whole model, wherever the block is held."""

    def __init__(self, config: PretrainedConfig, index: int):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
        self.config, self.index = config, index
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = head_size_of(config)
        self.rotary = Rotary.from_config(config, self.head_size)
        q_width, kv_width = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
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

    def forward(self, h_TD: Tensor, cos: Tensor, sin: Tensor, attend: Attend, ops: BlockOps) -> Tensor:
        qkv, qk_norms = (self.q, self.k, self.v), (self.q_norm, self.k_norm)
        q_THK, k_TGK, v_TGK = ops.norm_qkv(self.attention_norm, qkv, qk_norms, self.head_size, cos, sin, h_TD)
        o_THK = attend(self.index, q_THK, k_TGK, v_TGK, None)
        h_TD = ops.add_linear(h_TD, self.attention_out, o_THK.flatten(1))
        return ops.add_linear(h_TD, self.down, ops.norm_swiglu(self.mlp_norm, self.gate, self.up, h_TD))


class Llama(nn.Module):
    """A language model of the family in the engine's interface: embed, run a range of layers, norm, head weight.

    Raises UserError for heads that do not divide, an activation other than silu, or an unsupported rotary scaling.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        if config.hidden_act not in ("silu", "swish"):
            raise UserError(f"hidden_act is {config.hidden_act!r}: only silu is supported in the LLaMA family")
        if config.num_attention_heads % config.num_key_value_heads:
            raise UserError(
                f"{config.num_attention_heads} heads cannot be shared by {config.num_key_value_heads} key/value heads: "
                "correct num_key_value_heads in config.json"
            )
        self.config = config
        self.num_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = head_size_of(config)
        self.vocab_size = config.vocab_size
        self.max_length = length_limit(config).tokens
        self.embedding = nn.Embedding(self.vocab_size, self.hidden_size)
        self.layers = nn.ModuleList(LlamaBlock(config, i) for i in range(self.num_layers))
        self.final_norm = RMSNorm(self.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(self.hidden_size, self.vocab_size, bias=False)

    def embed(self, batch: PackedBatch) -> Tensor:
        """h_TD of the tokens, the input of layer 0."""
        return self.embedding(batch.tokens_T)

    def rotation(self, positions_T: Tensor) -> Rotation:
        """What the layers need to know of positions."""
        return cos_sin(self.layers[0].rotary, positions_T)

    def run(
        self, h_TD: Tensor, batch: PackedBatch, start: int, stop: int, attend: Attend | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:  # fmt: skip
        """Layers start to stop-1. attend defaults to causal attention within each sequence of the batch, rotation to
        that of the batch's positions.

        Raises UserError for a sequence longer than the model serves.
        """
        assert 0 <= start <= stop <= self.num_layers, (start, stop, self.num_layers)
        return self.run_layers([self.layers[i] for i in range(start, stop)], h_TD, batch, attend, rotation)

    @staticmethod
    def run_layers(
        layers: Sequence[LlamaBlock], h_TD: Tensor, batch: PackedBatch, attend: Attend | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:  # fmt: skip
        """The given blocks in turn, wherever they are held: nothing else of the model is needed."""
        if not len(layers):
            return h_TD
        ops, attend = block_ops(h_TD, attend, layers[0].q.weight), attend or causal_attend(batch)
        check_length(layers[0].config, batch.max_len)
        cos, sin = rotation or cos_sin(layers[0].rotary, batch.positions_T)
        for block in layers:
            h_TD = block(h_TD, cos, sin, attend, ops)
        return h_TD

    def norm(self, h_TD: Tensor) -> Tensor:
        """The final RMSNorm: norm(h) @ head_weight.T are the logits."""
        return self.final_norm(h_TD)

    @property
    def head_weight(self) -> Tensor:
        """W_VD: the head's, or the embedding's own tensor when tied. Raises UserError for a reward model without."""
        if self.config.tie_word_embeddings:
            return self.embedding.weight
        if self.head is None:
            raise UserError("a reward model was saved without a language head: pass the directory of a language model")
        return self.head.weight
