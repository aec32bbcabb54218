"""Fast paths: each family's block in a few fused kernels, for rows that attend to a cache, without gradients.

A family not in FAST_PATHS runs its block's own forward: slower, same numbers. So does every pack without a cache (its
bits must equal those of training), and everything with gradients or DeepSpeed's hooks, which are on the modules. Each
family has one fast path on CUDA (fused_cuda.py) and two on a CPU, here. With few rows, reading the weights takes all
the time, so small operations are fused into the products. With many rows, PyTorch computes the products, and one kernel
each the operations between them.
Shapes: T tokens, D model, N outputs, H heads, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from engine.models.attend import Attend, AttentionOptions
from engine.models.fused_cuda import bloom_on_cuda, gemma3_on_cuda, llama_on_cuda
from engine.models.layers import norm_of
from engine.models.quantised import weight_of
from engine.models.rotary import Rotation
from kernels import cuda_passes, passes
from kernels.linear_logprob import linear_logits
from kernels.rotary import rotate_in_place
from kernels.skinny_linear import Codes, fits, skinny_linear

# step(block, h_TD, rotation, attend) -> h_TD, the block's forward or a function in its place.
Step = Callable[[nn.Module, Tensor, Rotation | None, Attend], Tensor]


class FastPath(NamedTuple):
    """A family's block without gradients: on a CPU for few and for many rows, and on CUDA.

    `first_weight` returns the weight that decides.
    """

    few_rows: Step
    many_rows: Step
    on_cuda: Step
    first_weight: Callable[[nn.Module], Tensor | Codes]


def block_step(block: nn.Module, h_TD: Tensor, attend: Attend | None) -> Step:
    """Choose how to run blocks like this one: the family's fast path if it fits, else the forward."""
    path = FAST_PATHS.get(block.config.model_type)
    if path is None or attend is None:
        return nn.Module.__call__
    weight_ND = path.first_weight(block)
    if cuda_passes.fits(h_TD):
        whole = len(weight_ND.shape) == 2  # ZeRO-3 replaces sharded weights by flat placeholders
        return path.on_cuda if whole and weight_ND.dtype == h_TD.dtype else nn.Module.__call__
    if fits(h_TD, weight_ND):
        return path.few_rows
    like = h_TD if isinstance(weight_ND, Codes) else weight_ND  # codes have the values of any dtype
    return path.many_rows if passes.fits(h_TD, like) else nn.Module.__call__


def logits(model, h_SD: Tensor, out_SV: Tensor | None = None) -> Tensor:
    """Return the logits, float32 [S, V], of decoding rows. h_SD is the output of the last layer.

    On a CPU they are written to out_SV if it is given.
    """
    head_VD = model.head_weight
    if model.config.model_type in FAST_PATHS and fits(h_SD, head_VD):
        return skinny_linear(h_SD, [head_VD], [None], norm_of(model.final_norm), out_TN=out_SV)
    return linear_logits(model.norm(h_SD), head_VD, out_SV)


def llama_few_rows(block: nn.Module, h_TD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
    heads, kv_heads = block.q.out_features // block.head_size, block.k.out_features // block.head_size
    y_TN = _normed_linear(h_TD, block.attention_norm, (block.q, block.k, block.v))
    y_THK = y_TN.view(h_TD.shape[0], -1, block.head_size)
    for norm, start, count in ((block.q_norm, 0, heads), (block.k_norm, heads, kv_heads)):
        if not isinstance(norm, nn.Identity):
            passes.rms_norm_in_place(y_THK.narrow(1, start, count), *_weights(norm))
    if rotation is not None:
        rotate_in_place(y_THK.narrow(1, 0, heads + kv_heads), *rotation)
    o_THK = attend(block.index, *y_THK.split((heads, kv_heads, kv_heads), dim=1), block.options)
    h_TD = _add_linear(h_TD, block.attention_out, o_THK.flatten(1))
    return _add_linear(h_TD, block.down, _normed_linear(h_TD, block.mlp_norm, (block.gate, block.up), "swiglu"))


def llama_many_rows(block: nn.Module, h_TD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
    x_TD = passes.rms_norm(h_TD, *_weights(block.attention_norm))
    q_THK, k_TGK, v_TGK = (linear(x_TD).unflatten(1, (-1, block.head_size)) for linear in (block.q, block.k, block.v))
    q_THK, k_TGK = block.q_norm(q_THK), block.k_norm(k_TGK)
    if rotation is not None:
        rotate_in_place(q_THK, *rotation)
        rotate_in_place(k_TGK, *rotation)
    o_THK = attend(block.index, q_THK, k_TGK, v_TGK, block.options)
    h_TD = block.attention_out(o_THK.flatten(1)).add_(h_TD)
    x_TD = passes.rms_norm(h_TD, *_weights(block.mlp_norm))
    return block.down(passes.swiglu_in_place(block.gate(x_TD), block.up(x_TD))).add_(h_TD)


def gemma3_few_rows(block: nn.Module, h_TD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
    heads, kv_heads = block.q.out_features // block.head_size, block.k.out_features // block.head_size
    y_TN = _normed_linear(h_TD, block.attention_norm, (block.q, block.k, block.v))
    y_THK = y_TN.view(h_TD.shape[0], -1, block.head_size)
    passes.rms_norm_in_place(y_THK.narrow(1, 0, heads), *_weights(block.q_norm))
    passes.rms_norm_in_place(y_THK.narrow(1, heads, kv_heads), *_weights(block.k_norm))
    rotate_in_place(y_THK.narrow(1, 0, heads + kv_heads), *rotation)
    o_THK = attend(block.index, *y_THK.split((heads, kv_heads, kv_heads), dim=1), block.options)
    x_TD = _linear(block.attention_out, o_THK.flatten(1))
    h_TD = passes.add_rms_norm(h_TD, x_TD, *_weights(block.attention_out_norm))
    x_TD = _linear(block.down, _normed_linear(h_TD, block.mlp_norm, (block.gate, block.up), "geglu"))
    return passes.add_rms_norm(h_TD, x_TD, *_weights(block.mlp_out_norm))


def gemma3_many_rows(block: nn.Module, h_TD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
    x_TD = passes.rms_norm(h_TD, *_weights(block.attention_norm))
    q_THK, k_TGK, v_TGK = (linear(x_TD).unflatten(1, (-1, block.head_size)) for linear in (block.q, block.k, block.v))
    for x_THK, norm in ((q_THK, block.q_norm), (k_TGK, block.k_norm)):
        passes.rms_norm_in_place(x_THK, *_weights(norm))
        rotate_in_place(x_THK, *rotation)
    o_THK = attend(block.index, q_THK, k_TGK, v_TGK, block.options)
    h_TD = passes.add_rms_norm(h_TD, block.attention_out(o_THK.flatten(1)), *_weights(block.attention_out_norm))
    x_TD = passes.rms_norm(h_TD, *_weights(block.mlp_norm))
    x_TD = block.down(passes.geglu_in_place(block.gate(x_TD), block.up(x_TD)))
    return passes.add_rms_norm(h_TD, x_TD, *_weights(block.mlp_out_norm))


def bloom_few_rows(block: nn.Module, h_TD: Tensor, rotation: None, attend: Attend) -> Tensor:
    residual_TD = block.attention_norm(h_TD) if block.norm_feeds_residual else h_TD
    qkv_TN = _normed_linear(h_TD, block.attention_norm, (block.qkv,))
    o_THK = attend(block.index, *_bloom_qkv(block, qkv_TN), AttentionOptions(block.slopes(h_TD.device)))
    h_TD = _add_linear(residual_TD, block.attention_out, o_THK.flatten(1))
    residual_TD = block.mlp_norm(h_TD) if block.norm_feeds_residual else h_TD
    return _add_linear(residual_TD, block.mlp_down, _normed_linear(h_TD, block.mlp_norm, (block.mlp_up,), "gelu"))


def bloom_many_rows(block: nn.Module, h_TD: Tensor, rotation: None, attend: Attend) -> Tensor:
    residual_TD = block.attention_norm(h_TD) if block.norm_feeds_residual else h_TD
    qkv_TN = block.qkv(block.attention_norm(h_TD))
    o_THK = attend(block.index, *_bloom_qkv(block, qkv_TN), AttentionOptions(block.slopes(h_TD.device)))
    h_TD = block.attention_out(o_THK.flatten(1)).add_(residual_TD)
    residual_TD = block.mlp_norm(h_TD) if block.norm_feeds_residual else h_TD
    return block.mlp_down(passes.gelu_in_place(block.mlp_up(block.mlp_norm(h_TD)))).add_(residual_TD)


LLAMA = FastPath(llama_few_rows, llama_many_rows, llama_on_cuda, lambda block: weight_of(block.q))
GEMMA3 = FastPath(gemma3_few_rows, gemma3_many_rows, gemma3_on_cuda, lambda block: weight_of(block.q))
BLOOM = FastPath(bloom_few_rows, bloom_many_rows, bloom_on_cuda, lambda block: weight_of(block.qkv))
FAST_PATHS = {"bloom": BLOOM, "gemma3_text": GEMMA3} | dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA
)  # by model_type


def _bloom_qkv(block: nn.Module, qkv_TN: Tensor) -> tuple[Tensor, ...]:
    return qkv_TN.unflatten(1, (block.num_heads, 3, -1)).unbind(2)


def _normed_linear(h_TD: Tensor, norm: nn.Module, linears: tuple[nn.Linear, ...], activation: str | None = None):
    """Return activation(linear(norm(h))) of all linears, concatenated, in one pass."""
    weights, biases = [weight_of(m) for m in linears], [m.bias for m in linears]
    return skinny_linear(h_TD, weights, biases, norm_of(norm), activation)


def _add_linear(residual_TD: Tensor, linear: nn.Linear, x_TN: Tensor) -> Tensor:
    """Return residual + linear(x), in one pass."""
    return skinny_linear(x_TN, [weight_of(linear)], [linear.bias], None, None, residual_TD)


def _linear(linear: nn.Linear, x_TN: Tensor) -> Tensor:
    return skinny_linear(x_TN, [weight_of(linear)], [linear.bias])


def _weights(norm: nn.Module) -> tuple[Tensor, float, bool]:
    """Return the arguments of an RMSNorm in `passes`. PyTorch's takes several passes; its LayerNorm takes one."""
    weight_D, _, eps, centred = norm_of(norm)
    return weight_D, eps, centred
