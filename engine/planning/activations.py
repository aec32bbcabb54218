"""Count what a microbatch's forward and backward allocate, by running the model's own layers on the meta device.

Shapes: T tokens, A chosen columns, D model, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor, nn

from engine.batch import PackedBatch
from engine.models.attend import AttentionOptions
from engine.planning.memory_tracker import MemoryTracker


class _Attention(torch.autograd.Function):
    """Allocates like packed attention: the output and, for the backward, q, k, v and the logsumexp."""

    @staticmethod
    def forward(ctx, q, k, v):
        out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(q.shape[:2], device=q.device)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, _, _ = ctx.saved_tensors
        return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


class _Head(torch.autograd.Function):
    """Allocates like linear_logprob for its rows, without its bounded workspace."""

    @staticmethod
    def forward(ctx, h_AD):
        ctx.save_for_backward(h_AD)
        return torch.empty(h_AD.shape[0], device=h_AD.device)

    @staticmethod
    def backward(ctx, grad):
        return torch.empty(ctx.saved_tensors[0].shape, dtype=ctx.saved_tensors[0].dtype, device=grad.device)


def _attend(_: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    return _Attention.apply(q, k, v)


def _pack(tokens: int) -> PackedBatch:
    """A batch of tokens without values; sequence bounds do not matter here."""
    columns = (torch.empty(tokens, dtype=torch.int64, device="meta") for _ in range(2))
    return PackedBatch(*columns, None, (1,) * tokens)


@lru_cache(maxsize=64)  # the planner asks for the same microbatch with many numbers of rollouts
def activation_bytes(
    model: nn.Module, start: int, tokens: int, actions: int, recompute: bool = False, middle: range = range(0)
) -> int:
    """Peak bytes of forward and backward of the layers from `start` on for a microbatch, without weight gradients.

    `model` is on the meta device in the dtype of the run. The layers of `middle` are not trained, but gradients pass
    through them: they keep what the gradients of their inputs need, and no inputs of their matrices. With recompute,
    of the inputs of all layers, and of what is inside one.
    """
    if recompute:
        last = model.num_layers - 1
        inputs = (last - start) * tokens * model.hidden_size * next(model.parameters()).dtype.itemsize
        return inputs + activation_bytes(model, last, tokens, actions)
    # Layers that are trained alike keep alike: of a run of them, two are run, and a third to see what each adds.
    runs = [list(run) for _, run in groupby(range(start, model.num_layers), key=lambda i: i in middle)]

    def peak(*taken: int) -> int:
        layers = [i for run, count in zip(runs, taken) for i in run[:count]]
        return _peak(model, layers, tokens, actions, middle)

    few, long = [min(len(run), 2) for run in runs], [i for i, run in enumerate(runs) if len(run) > 2]
    if sum(map(len, runs)) <= sum(few) + len(long) * (sum(few) + 1):
        return peak(*map(len, runs))  # that is as fast
    least = peak(*few)
    return least + sum((len(runs[i]) - 2) * (peak(*few[:i], 3, *few[i + 1 :]) - least) for i in long)


def _peak(model: nn.Module, chosen: Sequence[int], tokens: int, actions: int, middle: range) -> int:
    """Peak bytes of forward and backward of the chosen layers, one after the other, and the final norm."""
    device, layers = torch.device("meta"), [model.layers[i] for i in chosen]
    batch = _pack(tokens)
    model.rotations(_pack(1).positions_T)  # what is cached for the life of the process is no part of a step
    for i, layer in zip(chosen, layers):
        layer.requires_grad_(i not in middle)
    model.final_norm.requires_grad_(True)
    trained = [w for part in (*layers, model.final_norm) for w in part.parameters() if w.requires_grad]
    for weight in trained:
        weight.grad = torch.empty_like(weight)  # allocated before, so that only temporary memory is counted
    with MemoryTracker() as tracker:
        trunk_TD = torch.empty(tokens, model.hidden_size, dtype=next(model.parameters()).dtype, device=device)
        trunk_TD.requires_grad_(0 in chosen)  # the embeddings are trained
        h_TD = model.run_layers(layers, trunk_TD, batch, _attend)
        h_AD = model.final_norm(h_TD[torch.empty(actions, dtype=torch.int64, device=device)])
        del h_TD
        _Head.apply(h_AD).sum().backward()
    for weight in trained:
        weight.grad = None
    return tracker.peak


@lru_cache(maxsize=64)
@torch.no_grad()
def forward_bytes(model: nn.Module, tokens: int) -> int:
    """Peak bytes of one layer's forward in generation, where nothing is kept for a backward."""
    device, batch = torch.device("meta"), _pack(tokens)
    with MemoryTracker() as tracker:
        h_TD = torch.empty(tokens, model.hidden_size, dtype=next(model.parameters()).dtype, device=device)
        model.run_layers(model.layers[:1], h_TD, batch, _attend)
    return tracker.peak
