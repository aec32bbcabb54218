"""What a block does beside attention: module by module, or in fewer passes where no gradient is wanted.

Training needs the modules: gradients and DeepSpeed's hooks hang on them. Decoding needs the passes: with a few rows the
time is that of reading the weights once, and every small operation beside that is felt. With many rows the products
are PyTorch's, and what stands between them is one pass each.
Shapes: T tokens, D model, N outputs, H heads, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from engine.models.attend import Attend
from engine.models.rotary import rotate
from kernels import bf16_passes, passes
from kernels.linear_logprob import linear_logits
from kernels.rotary import rotate_in_place
from kernels.skinny_linear import Norm, fits, skinny_linear


class BlockOps(Protocol):
    """The passes of a block."""

    def norm_linear(self, norm: nn.Module, linear: nn.Linear, h_TD: Tensor) -> Tensor:
        """linear(norm(h))."""

    def norm_qkv(
        self, norm: nn.Module, qkv: Sequence[nn.Linear], qk_norms: Sequence[nn.Module], head_size: int,
        cos: Tensor, sin: Tensor, h_TD: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """q [T, H, K], k and v [T, G, K] of norm(h), q and k normed and rotated."""

    def norm_linear_gelu(self, norm: nn.Module, linear: nn.Linear, h_TD: Tensor) -> Tensor:
        """gelu(linear(norm(h))), by tanh."""

    def norm_swiglu(self, norm: nn.Module, gate: nn.Linear, up: nn.Linear, h_TD: Tensor) -> Tensor:
        """silu(gate(norm(h))) * up(norm(h))."""

    def add_linear(self, residual_TD: Tensor, linear: nn.Linear, x_TN: Tensor) -> Tensor:
        """residual + linear(x)."""


class ByModule:
    """Each module called, with gradients."""

    def norm_linear(self, norm, linear, h_TD):
        return linear(norm(h_TD))

    def norm_qkv(self, norm, qkv, qk_norms, head_size, cos, sin, h_TD):
        x_TD = norm(h_TD)
        q_THK, k_TGK, v_TGK = (linear(x_TD).unflatten(1, (-1, head_size)) for linear in qkv)
        return rotate(qk_norms[0](q_THK), cos, sin), rotate(qk_norms[1](k_TGK), cos, sin), v_TGK

    def norm_linear_gelu(self, norm, linear, h_TD):
        return gelu(linear(norm(h_TD)), approximate="tanh")

    def norm_swiglu(self, norm, gate, up, h_TD):
        x_TD = norm(h_TD)
        gate_TN, up_TN = gate(x_TD), up(x_TD)
        return bf16_passes.swiglu(gate_TN, up_TN) if bf16_passes.fits(gate_TN) else silu(gate_TN) * up_TN

    def add_linear(self, residual_TD, linear, x_TN):
        return residual_TD + linear(x_TN)


class FewRows:
    """The modules' own weights, in one pass each."""

    def norm_linear(self, norm, linear, h_TD):
        return skinny_linear(h_TD, [linear.weight], [linear.bias], _parameters(norm))

    def norm_qkv(self, norm, qkv, qk_norms, head_size, cos, sin, h_TD):
        y_TN = skinny_linear(h_TD, [m.weight for m in qkv], [m.bias for m in qkv], _parameters(norm))
        y_THK = y_TN.view(h_TD.shape[0], -1, head_size)
        heads, kv_heads = qkv[0].out_features // head_size, qkv[1].out_features // head_size
        for i, qk_norm in enumerate(qk_norms):
            if not isinstance(qk_norm, nn.Identity):
                part_THK = y_THK.narrow(1, i * heads, kv_heads if i else heads)
                part_THK.copy_(qk_norm(part_THK))
        rotate_in_place(y_THK.narrow(1, 0, heads + kv_heads), cos, sin)
        return y_THK.split((heads, kv_heads, kv_heads), dim=1)

    def norm_linear_gelu(self, norm, linear, h_TD):
        return skinny_linear(h_TD, [linear.weight], [linear.bias], _parameters(norm), "gelu")

    def norm_swiglu(self, norm, gate, up, h_TD):
        return skinny_linear(h_TD, [gate.weight, up.weight], [gate.bias, up.bias], _parameters(norm), "swiglu")

    def add_linear(self, residual_TD, linear, x_TN):
        return skinny_linear(x_TN, [linear.weight], [linear.bias], None, None, residual_TD)


class ManyRows:
    """The modules' products, and one pass each for what stands between them."""

    def norm_linear(self, norm, linear, h_TD):
        return linear(_normed(norm, h_TD))

    def norm_qkv(self, norm, qkv, qk_norms, head_size, cos, sin, h_TD):
        x_TD = _normed(norm, h_TD)
        q_THK, k_TGK, v_TGK = (linear(x_TD).unflatten(1, (-1, head_size)) for linear in qkv)
        q_THK, k_TGK = qk_norms[0](q_THK), qk_norms[1](k_TGK)
        for x_THK in (q_THK, k_TGK):
            rotate_in_place(x_THK, cos, sin)
        return q_THK, k_TGK, v_TGK

    def norm_linear_gelu(self, norm, linear, h_TD):
        return passes.gelu_in_place(linear(_normed(norm, h_TD)))

    def norm_swiglu(self, norm, gate, up, h_TD):
        x_TD = _normed(norm, h_TD)
        return passes.swiglu_in_place(gate(x_TD), up(x_TD))

    def add_linear(self, residual_TD, linear, x_TN):
        return linear(x_TN).add_(residual_TD)


def block_ops(h_TD: Tensor, attend: Attend | None, weight_ND: Tensor) -> BlockOps:
    """Fewer passes for rows that attend to a cache; not for a pack, since its bits must be those it has in training."""
    if attend is None:
        return ByModule()
    return FewRows() if fits(h_TD, weight_ND) else ManyRows() if passes.fits(h_TD, weight_ND) else ByModule()


def logits(model, h_SD: Tensor) -> Tensor:
    """float32 [S, V] of rows that decode, h_SD what the last layer gave."""
    head_VD = model.head_weight
    if fits(h_SD, head_VD):
        return skinny_linear(h_SD, [head_VD], [None], _parameters(model.final_norm))
    return linear_logits(model.norm(h_SD), head_VD)


def _normed(norm: nn.Module, h_TD: Tensor) -> Tensor:
    """norm(h): PyTorch's LayerNorm is one pass already, its RMSNorm is not."""
    return norm(h_TD) if isinstance(norm, nn.LayerNorm) else passes.rms_norm(h_TD, norm.weight, norm.eps)


def _parameters(norm: nn.Module) -> Norm:
    return Norm(norm.weight, getattr(norm, "bias", None), norm.eps)
