"""Predict a stage's memory by part, and floating-point operations and bytes by phase, from a config alone.

The model is built on the meta device, and activations are counted by running the trained layers forward and backward
there. Shapes: T tokens, D model, H heads, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from engine.batch import PackedBatch
from engine.generation.kv_cache import PAGE_SIZE, page_bytes, pages_for
from engine.models.attend import AttentionOptions
from engine.planning.memory_tracker import MemoryTracker
from engine.planning.sizes import Frozen, Sizes
from engine.shared_rows import MOST
from engine.training.lora import num_factors
from engine.training.modules import Top

WORKSPACE = 64 << 20  # upper bound of linear_logprob's
PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Workload:
    """The workload. Sizes in tokens; for several ranks, the share of one."""

    stage: str  # sft, reward, dpo or ppo
    dtype: torch.dtype
    ranks: int
    zero: int
    offload: bool  # optimizer state in host memory
    top_layers: int | None  # None: all
    rollouts: int  # per iteration, all ranks together
    slots: int  # generated at once on a rank
    prompt_tokens: int
    new_tokens: int
    tokens_per_microbatch: int
    shared_trunk: bool  # of the reward model
    separate_critic: bool
    reward_offload: bool
    trunk_cache_gb: float
    ppo_epochs: int
    samples: int = 1  # responses to each prompt, which share its rows
    value_head: bool = True  # PPO: False without a critic
    rewards: int = 1  # PPO: reward models, all of the policy's size
    lora_rank: int = 0  # SFT: of the factors trained in place of the weights
    recompute: bool = False  # run trained layers again in their backward
    minibatch: int | None = None  # PPO: rollouts of an update, all ranks together; None: all
    text_tokens: int = 0  # PPO: tokens of pretraining text in the updates of an iteration, all ranks together
    trunk_dtype: str = "model"  # of the linear layers that are not trained: model, int8 or int4
    embedding_dtype: str = "model"  # of the embedding and the head, where they are not trained


@dataclass(frozen=True)
class Part:
    """Bytes of one part on one device, while generating (PPO only) and while updating."""

    name: str
    rollout: float
    update: float


@dataclass(frozen=True)
class Phase:
    """Operations and bytes of one phase on one rank."""

    name: str
    flops: float
    bytes: float

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Lower bound of the time: the longer of arithmetic and memory traffic at the given rates."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s)


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
def activation_bytes(model: nn.Module, start: int, tokens: int, actions: int, recompute: bool = False) -> int:
    """Peak bytes of forward and backward of the layers from `start` on for a microbatch, without weight gradients.

    `model` is on the meta device in the dtype of the run. With recompute, of the inputs of all layers, and of what is
    inside one.
    """
    device = torch.device("meta")
    dtype = next(model.parameters()).dtype
    if recompute:
        last = model.num_layers - 1
        inputs = (last - start) * tokens * model.hidden_size * dtype.itemsize
        return inputs + activation_bytes(model, last, tokens, actions)
    top = Top(model, start)
    batch = _pack(tokens)
    model.rotations(_pack(1).positions_T)  # what is cached for the life of the process is no part of a step
    for weight in top.parameters():
        weight.requires_grad_(True)
        weight.grad = torch.empty_like(weight)  # allocated before, so that only temporary memory is counted
    with MemoryTracker() as tracker:
        trunk_TD = torch.empty(tokens, model.hidden_size, dtype=dtype, device=device)
        h_TD = model.run_layers(list(top.layers.values()), trunk_TD, batch, _attend)
        h_AD = top.final_norm(h_TD[torch.empty(actions, dtype=torch.int64, device=device)])
        del h_TD
        if start == 0:
            trunk_TD.requires_grad_(True)
        _Head.apply(h_AD).sum().backward()
    for weight in top.parameters():
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


def memory(model: nn.Module, w: Workload) -> list[Part]:
    """Return bytes by part on one device."""
    s, L, D, b = Sizes.of(model), model.num_layers, model.hidden_size, w.dtype.itemsize
    top = L if w.top_layers is None else min(w.top_layers, L)
    speaks = w.stage in ("sft", "dpo")  # trains a language model, and no score or value head
    whole = w.stage != "reward" and w.top_layers is None
    top_weights = top * s.layer + s.norm
    frozen = Frozen.of(model, w.dtype, w.trunk_dtype, w.embedding_dtype)
    trunk = 0 if whole else (L - top) * frozen.layer + frozen.embedding
    trained = top_weights + (s.embedding + s.head if whole else 0)
    trained += 0 if speaks or w.stage == "ppo" and not w.value_head else D
    adapted = 0
    if w.lora_rank:
        adapted = top * frozen.layer + s.norm * b + (frozen.embedding + frozen.head if whole else 0)
        trained = num_factors(model, L - top, w.lora_rank)
    parts, sharded = [], w.zero == 3 and w.ranks > 1
    own = 1 / w.ranks if sharded else 1  # share of what ZeRO-3 shards
    if w.stage == "ppo":
        head_in_trunk = 0 if s.head else frozen.embedding  # tied: used in every update, so it stays whole
        parts.append(Part("trunk", trunk, head_in_trunk + (trunk - head_in_trunk) * own if trunk else 0))
        if s.head and not whole:
            parts.append(Part("LM head", frozen.head, frozen.head))
        copy = trained * b if sharded else 0  # the generating model keeps its own top
        parts.append(Part("policy" if whole else "policy top", trained * b * own + copy, trained * b * own + copy))
        reference = (trained if whole else top_weights) * b
        parts.append(Part("reference" if whole else "reference top", reference, reference))
        if w.shared_trunk and not whole:
            reward = w.rewards * (top_weights + D) * b
            parts.append(Part("reward top" + "s" * (w.rewards > 1), reward, reward))
        else:
            each = (L if whole else top) * s.layer * b + (0 if whole else (L - top) * frozen.layer)
            reward = 0 if w.reward_offload else w.rewards * (each + frozen.embedding + (s.norm + D) * b)
            parts.append(Part("reward model" + "s" * (w.rewards > 1), reward, reward))
        if w.separate_critic:
            critic = top_weights if not whole else L * s.layer + s.norm + s.embedding
            trained += critic
            parts.append(Part("critic", critic * b * own, critic * b * own))
    else:
        parts.append(Part("frozen layers", 0, trunk + (0 if whole else frozen.head * speaks) + adapted))
        parts.append(Part("trained weights", 0, trained * b * own))
    state = (2 if w.dtype == torch.float32 else 3) * 4 * trained  # moments, and masters of bfloat16 weights
    zero = max(w.zero, 0 if w.dtype == torch.float32 else 1)
    state_here = 0 if w.offload else state / (w.ranks if zero >= 1 else 1)
    parts.append(Part("optimizer", state_here if w.stage == "ppo" else 0, state_here))
    summed_as_they_come = w.dtype == torch.float32 or w.zero == 0 and w.ranks == 1  # see master_weights.py
    gradients = 4 * trained if summed_as_they_come else (4 + b) * trained
    parts.append(Part("gradients", 0, gradients / (w.ranks if zero >= 2 else 1)))
    first = 0 if whole else L - top
    T = w.tokens_per_microbatch
    every_column = w.stage != "ppo" or w.text_tokens > 0  # text predicts all of its tokens, a rollout its response
    activations = activation_bytes(model, first, T, T if every_column else T // 2, w.recompute)
    if w.separate_critic and w.stage == "ppo":
        activations *= 2
    parts.append(Part("activations", 0, activations))
    if frozen.tile:  # a backward through frozen layers dequantises a whole weight
        parts.append(Part("a dequantised weight", frozen.tile, frozen.tile + frozen.weight * bool(w.lora_rank)))
    logits = T * model.vocab_size * 4
    parts.append(Part("log-prob workspace", 0, 0 if w.stage == "reward" else min(WORKSPACE, logits)))
    if w.stage == "ppo":
        here = -(-w.rollouts // w.ranks)
        length = w.prompt_tokens + w.new_tokens
        flying = min(here, w.slots)
        pages = flying * pages_for(length) + 1  # allocated so, although the samples of a prompt share its pages
        parts.append(Part("cache of keys and values", pages * page_bytes(model, w.dtype), 0))
        if not whole:
            kept = here * length * D * b
            on_device = kept if kept <= w.trunk_cache_gb * 1e9 else 0
            parts.append(Part("trunk outputs", pages * PAGE_SIZE * D * b + on_device, on_device))
        rows = min(PREFILL_TOKENS, here // w.samples * w.prompt_tokens)
        logits = flying * model.vocab_size * 4 * 2  # in float32, with sampling's temporaries
        parts.append(Part("a step's activations or logits", max(forward_bytes(model, rows), logits), 0))
    return parts


def peaks(parts: Sequence[Part]) -> tuple[float, float]:
    """Return the peak bytes of the rollout and of the update."""
    return sum(p.rollout for p in parts), sum(p.update for p in parts)


def _shared_rows(w: Workload, responses: int, at_once: int) -> float:
    """Return the rows of all responses, `at_once` run together, chosen at random; those of a prompt share its rows."""
    prompts = -(-responses // w.samples)
    met = prompts * (1 - (1 - at_once / responses) ** w.samples)  # prompts among those run together, on average
    rows = responses / at_once * met * w.prompt_tokens + responses * w.new_tokens
    tokens = responses * (w.prompt_tokens + w.new_tokens)
    return rows if rows <= MOST * tokens else tokens


def phases(model: nn.Module, w: Workload) -> list[Phase]:
    """Return operations (2 per multiply-add) and bytes moved in each phase of an iteration or step, on one rank."""
    s, L, D, V, b = Sizes.of(model), model.num_layers, model.hidden_size, model.vocab_size, w.dtype.itemsize
    top = L if w.top_layers is None else min(w.top_layers, L)
    here, length = -(-w.rollouts // w.ranks), w.prompt_tokens + w.new_tokens
    width = model.num_heads * model.head_size
    tokens, new = here * length, here * w.new_tokens
    stored = Frozen.of(model, w.dtype, w.trunk_dtype, w.embedding_dtype)

    def body(count: int) -> int:
        """Bytes of the weights of all layers, `count` of them trained."""
        return (L - count) * stored.passed + count * s.layer * b

    def layers(count: int, n_tokens: int, context: float, rows: float | None = None) -> float:
        """Operations of a forward: matrices, on rows, and attention over `context` earlier positions, of tokens."""
        rows = n_tokens if rows is None else rows
        return count * (rows * 2 * s.layer_matrices + n_tokens * 4 * width * context)

    head = 2 * V * D
    if w.stage != "ppo":
        rows = _shared_rows(w, here, here)
        trained = layers(top, tokens, length / 2, rows)
        frozen = layers(L - top, tokens, length / 2, rows)
        heads = 0 if w.stage == "reward" else head * new * (4 if w.top_layers is None else 3)  # loss on responses
        weights = body(0 if w.lora_rank else top) + (s.embedding - V * D) * b + stored.head_passed
        work = [Phase("forward and backward", frozen + 3 * trained + heads, 3 * weights)]
        if (
            w.stage == "dpo"
        ):  # before the first step, the frozen layers included; where they are kept, a step saves them
            work.append(Phase("the reference, once for these responses", frozen + trained + head * new, weights))
        return work
    weights = body(top) + stored.head_passed
    cache, prompts = page_bytes(model, w.dtype) / PAGE_SIZE, -(-here // w.samples)
    rounds = max(1.0, here / w.slots)
    decode_bytes = w.new_tokens * (rounds * weights + here * (w.prompt_tokens + w.new_tokens / 2) * cache)
    decode = layers(L, new, w.prompt_tokens + w.new_tokens / 2) + head * new
    rows = _shared_rows(w, here, here)
    reward = w.rewards * layers(top if w.shared_trunk else L, tokens, length / 2, rows)
    bodies = 2 + w.separate_critic
    scoring = bodies * layers(top, tokens, length / 2, rows) + 2 * head * new + reward
    minibatch = min(here, -(-(w.minibatch or w.rollouts) // w.ranks))
    trained = (1 + w.separate_critic) * layers(top, tokens, length / 2, _shared_rows(w, here, minibatch))
    update = w.ppo_epochs * (3 * trained + 3 * head * new)
    top_bytes = top * s.layer * b + stored.head_passed
    passes = -(-tokens // w.tokens_per_microbatch)
    reward_bytes = w.rewards * (top_bytes if w.shared_trunk else weights)
    work = [
        Phase("prefill", layers(L, prompts * w.prompt_tokens, w.prompt_tokens / 2), weights),
        Phase("decode", decode, decode_bytes),
        Phase("scoring", scoring, passes * (bodies * top_bytes + reward_bytes)),
        Phase("update", update, w.ppo_epochs * passes * 3 * top_bytes),
    ]
    if w.text_tokens:
        text = -(-w.text_tokens // w.ranks)
        flops = layers(L - top, text, length / 2) + 3 * layers(top, text, length / 2) + 3 * head * text
        work.append(Phase("pretraining text", flops, -(-text // w.tokens_per_microbatch) * (weights + 2 * top_bytes)))
    return work
