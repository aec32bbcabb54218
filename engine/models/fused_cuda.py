"""Fast paths on CUDA: each family's block in as few kernels as possible, for rows that attend to a cache.

The kernels of a decode step are small, and each takes a few microseconds whatever it does. Shapes: T tokens, D model,
N outputs, H heads, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.models.attend import Attend, AttentionOptions, CacheAttend
from engine.models.layers import norm_of
from engine.models.quantised import Quantised, weight_of
from engine.models.rotary import Rotation
from engine.models.side_by_side import joined
from kernels import cuda_passes
from kernels.coded_linear import coded_linear
from kernels.common.codes import Codes
from kernels.rotary import rotate_and_write


def llama_on_cuda(block: nn.Module, h_TD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
    _, x_TD = cuda_passes.add_norm(h_TD, None, norm_of(block.attention_norm))
    x_TD = block.attention_out(_attention(block, x_TD, rotation, attend))
    h_TD, x_TD = cuda_passes.add_norm(h_TD, x_TD, norm_of(block.mlp_norm), next_bias_D=block.down.bias)
    gate_TN, up_TN = _products((block.gate, block.up), x_TD)
    return _add_product(h_TD, block.down, cuda_passes.gated("swiglu", gate_TN, up_TN))


def gemma3_on_cuda(block: nn.Module, h_TD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
    _, x_TD = cuda_passes.add_norm(h_TD, None, norm_of(block.attention_norm))
    x_TD = block.attention_out(_attention(block, x_TD, rotation, attend))
    h_TD, x_TD = cuda_passes.add_norm(h_TD, x_TD, norm_of(block.mlp_norm), norm_of(block.attention_out_norm))
    gate_TN, up_TN = _products((block.gate, block.up), x_TD)
    x_TD = block.down(cuda_passes.gated("geglu", gate_TN, up_TN))
    return cuda_passes.add_norm(h_TD, x_TD, None, norm_of(block.mlp_out_norm))[0]


def bloom_on_cuda(block: nn.Module, h_TD: Tensor, rotation: None, attend: Attend) -> Tensor:
    if block.norm_feeds_residual:
        return block(h_TD, rotation, attend)
    _, x_TD = cuda_passes.add_norm(h_TD, None, norm_of(block.attention_norm))
    qkv = block.qkv(x_TD).unflatten(1, (block.num_heads, 3, -1)).unbind(2)
    x_TD = block.attention_out(attend(block.index, *qkv, AttentionOptions(block.slopes(h_TD.device))).flatten(1))
    h_TD, x_TD = cuda_passes.add_norm(h_TD, x_TD, norm_of(block.mlp_norm), next_bias_D=block.mlp_down.bias)
    return _add_product(h_TD, block.mlp_down, _gelu_product(block.mlp_up, x_TD))


def _attention(block: nn.Module, x_TD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
    """Return the attention's output [T, H K] from normed rows."""
    outputs = _products((block.q, block.k, block.v), x_TD)
    q_THK, k_TGK, v_TGK = (y_TN.unflatten(1, (-1, block.head_size)) for y_TN in outputs)
    normed = not isinstance(block.q_norm, nn.Identity)
    norms = (norm_of(block.q_norm), norm_of(block.k_norm)) if normed else None
    if isinstance(attend, CacheAttend):
        rotate_and_write(q_THK, k_TGK, v_TGK, rotation, norms, attend.pages(block.index))
        return attend.read(block.index, q_THK, block.options).flatten(1)
    rotate_and_write(q_THK, k_TGK, v_TGK, rotation, norms)
    return attend(block.index, q_THK, k_TGK, v_TGK, block.options).flatten(1)


def _product(weight: Tensor | Codes, bias_N: Tensor | None, x_TD: Tensor) -> Tensor:
    if isinstance(weight, Codes):
        return coded_linear(x_TD, weight, bias_N)
    return functional.linear(x_TD, weight, bias_N)


def _products(layers: Sequence[nn.Module], x_TD: Tensor) -> Sequence[Tensor]:
    """Return the layers' outputs, of one product where their weights lie side by side."""
    whole = joined(layers)
    if whole is None:
        return [layer(x_TD) for layer in layers]
    return _product(*whole, x_TD).split([layer.out_features for layer in layers], dim=1)


def _add_product(residual_TD: Tensor, layer: nn.Module, x_TN: Tensor) -> Tensor:
    """Add the layer's product to the residual, which contains its bias already, in place."""
    if isinstance(layer, Quantised):
        return residual_TD.add_(_product(weight_of(layer), None, x_TN))
    return residual_TD.addmm_(x_TN, layer.weight.T)


def _gelu_product(layer: nn.Module, x_TD: Tensor) -> Tensor:
    """Return gelu(layer(x)).

    cuBLAS computes the tanh form inside the product; how exactly is not documented, so float32 rows go without.
    """
    if isinstance(layer, Quantised) or x_TD.dtype == torch.float32:
        return cuda_passes.gelu(layer(x_TD))
    return torch._addmm_activation(layer.bias, x_TD, layer.weight.T, use_gelu=True)
