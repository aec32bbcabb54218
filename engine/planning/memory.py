"""Predict a stage's memory by part, and floating-point operations and bytes by phase, from a config alone.

The model is built on the meta device, where activations are counted (activations.py). Shapes: T tokens, D model,
H heads, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from engine.generation.cache_budget import FREE_MEMORY_SHARE
from engine.generation.kv_cache import PAGE_SIZE, page_bytes, pages_for
from engine.planning.activations import activation_bytes, forward_bytes
from engine.planning.sizes import Frozen, Sizes, linear_shapes
from engine.shared_rows import MOST
from engine.training.lora import num_factors
from kernels.coded_linear.tiles import sum_bytes

WORKSPACE = 64 << 20  # upper bound of linear_logprob's
PREFILL_TOKENS = 512
CACHE = "cache of keys and values"
TRUNK_OUTPUTS = "trunk outputs"
STEP = "a step's activations or logits"


@dataclass(frozen=True)
class Workload:
    """The workload. Sizes in tokens; for several ranks, the share of one."""

    stage: str  # pretrain, sft, reward, dpo or ppo
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
    bottom_layers: int | None = None  # pretraining: trained beside the top ones, with embeddings and head
    embedding_dtype: str = "model"  # of the embedding and the head, where they are not trained
    park_trunk: bool = False  # PPO: in host memory during updates
    cache_tokens: int | None = None  # PPO: positions in the cache of keys and values; None: what the slots can fill

    @property
    def at_once(self) -> int:
        """Rollouts that a rank generates at once: its slots, as far as the cache has room for them."""
        flying = min(-(-self.rollouts // self.ranks), self.slots)
        if self.cache_tokens is None:
            return flying
        each = pages_for(self.prompt_tokens + self.new_tokens)
        return max(1, min(flying, (self.cache_tokens // PAGE_SIZE - 1) // each))

    @property
    def pages(self) -> int:
        """Pages of the cache, allocated so, although the samples of a prompt share some."""
        pages = self.at_once * pages_for(self.prompt_tokens + self.new_tokens) + 1
        return pages if self.cache_tokens is None else min(pages, self.cache_tokens // PAGE_SIZE)


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


def _sums(model: nn.Module, w: Workload, rows: int, backward: bool) -> int:
    """Return an upper bound of the bytes of float32 sums in products with quantised weights, for up to so many rows."""
    if w.trunk_dtype == "model":
        return 0
    shapes = linear_shapes(model)
    pairs = [pair for shape in shapes for pair in ((shape[::-1], shape) if backward else (shape[::-1],))]
    return max(sum_bytes(rows, inner, columns) for inner, columns in pairs)


def memory(model: nn.Module, w: Workload) -> list[Part]:
    """Return bytes by part on one device."""
    s, L, D, b = Sizes.of(model), model.num_layers, model.hidden_size, w.dtype.itemsize
    top = L if w.top_layers is None else min(w.top_layers, L)
    bottom = w.bottom_layers or 0
    speaks = w.stage in ("pretrain", "sft", "dpo")  # trains a language model, and no score or value head
    # Trains embeddings and head: gradients pass through all layers, frozen ones too.
    whole = w.stage != "reward" and w.top_layers is None or w.bottom_layers is not None
    top_weights = (top + bottom) * s.layer + s.norm
    frozen = Frozen.of(model, w.dtype, w.trunk_dtype, w.embedding_dtype)
    trunk = (L - top - bottom) * frozen.layer + (0 if whole else frozen.embedding)
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
        kept = 0 if w.park_trunk else own
        parts.append(Part("trunk", trunk, head_in_trunk + (trunk - head_in_trunk) * kept if trunk else 0))
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
    share = 1 / w.ranks if zero >= 2 else 1
    # DeepSpeed keeps the float32 sums of bfloat16 gradients for the whole run, with offload in host memory.
    kept = 0 if summed_as_they_come or w.offload else 4 * trained * share
    gradients = 4 * trained if summed_as_they_come else (4 + b) * trained
    parts.append(Part("gradients", kept if w.stage == "ppo" else 0, gradients * share))
    first = 0 if whole else L - top
    T = w.tokens_per_microbatch
    every_column = w.stage != "ppo" or w.text_tokens > 0  # text predicts all of its tokens, a rollout its response
    middle = range(bottom, L - top) if whole else range(0)
    activations = activation_bytes(model, first, T, T if every_column else T // 2, w.recompute, middle)
    if w.separate_critic and w.stage == "ppo":
        activations *= 2
    parts.append(Part("activations", 0, activations))
    if sums := _sums(model, w, max(T, PREFILL_TOKENS + w.slots), bool(w.lora_rank)):
        parts.append(Part("sums of quantised layers", sums if w.stage == "ppo" else 0, sums))
    if frozen.tile:
        parts.append(Part("dequantised rows of the head", frozen.tile, frozen.tile))
    workspace = 0 if w.stage == "reward" else min(WORKSPACE, T * model.vocab_size * 4)
    if whole and w.stage != "reward" and not w.lora_rank:
        rows = model.vocab_size * D * b
        # A tied head's waits for the embeddings', which comes when activations are gone; then there is their sum, too.
        ending = 0 if s.head else 3 * rows - activations - workspace
        parts.append(Part("a gradient of the head", 0, max(rows, ending)))
    parts.append(Part("log-prob workspace", 0, workspace))
    if w.stage == "ppo":
        here = -(-w.rollouts // w.ranks)
        length = w.prompt_tokens + w.new_tokens
        stays = 0 if sharded or w.park_trunk else 1  # the cache, where the trunk does
        cache = w.pages * page_bytes(model, w.dtype)
        parts.append(Part(CACHE, cache, stays * cache))
        if not whole:
            kept = here * length * D * b
            on_device = kept if kept <= w.trunk_cache_gb * 1e9 else 0
            paged = w.pages * PAGE_SIZE * D * b
            parts.append(Part(TRUNK_OUTPUTS, paged + on_device, stays * paged + on_device))
        rows = min(PREFILL_TOKENS, here // w.samples * w.prompt_tokens)
        logits = w.at_once * model.vocab_size * 4 * 2  # in float32, with sampling's temporaries
        parts.append(Part(STEP, max(forward_bytes(model, rows), logits), 0))
    return parts


def peaks(parts: Sequence[Part]) -> tuple[float, float]:
    """Return the peak bytes of the rollout and of the update."""
    return sum(p.rollout for p in parts), sum(p.update for p in parts)


def within_budget(model: nn.Module, w: Workload, device_bytes: float) -> Workload:
    """Return the workload with the cache that a run allocates: at most half of what is free before the first rollout.

    As in engine/generation/cache_budget.py. With cache_tokens given, it stays as it is.
    """
    if w.stage != "ppo" or w.cache_tokens is not None:
        return w
    parts = memory(model, dataclasses.replace(w, cache_tokens=2 * PAGE_SIZE))
    free = device_bytes - sum(p.rollout for p in parts if p.name not in (CACHE, TRUNK_OUTPUTS, STEP))
    page = page_bytes(model, w.dtype) + (
        0 if w.top_layers is None else PAGE_SIZE * model.hidden_size * w.dtype.itemsize
    )
    most = int(max(free, 0) * FREE_MEMORY_SHARE / page)
    return w if w.pages <= most else dataclasses.replace(w, cache_tokens=max(most, 2) * PAGE_SIZE)


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
        return (L - count) * stored.layer + count * s.layer * b

    def layers(count: int, n_tokens: int, context: float, rows: float | None = None) -> float:
        """Operations of a forward: matrices, on rows, and attention over `context` earlier positions, of tokens."""
        rows = n_tokens if rows is None else rows
        return count * (rows * 2 * s.layer_matrices + n_tokens * 4 * width * context)

    head = 2 * V * D
    if w.stage != "ppo":
        rows = _shared_rows(w, here, here)
        count = top + (w.bottom_layers or 0)
        trained = layers(count, tokens, length / 2, rows)
        frozen = layers(L - count, tokens, length / 2, rows)
        through = frozen if w.bottom_layers is not None else 0  # gradients pass through the frozen layers
        head_trained = w.top_layers is None or w.bottom_layers is not None
        predicted = tokens if w.stage == "pretrain" else new  # loss on responses
        heads = 0 if w.stage == "reward" else head * predicted * (4 if head_trained else 3)
        weights = body(0 if w.lora_rank else count) + (s.embedding - V * D) * b + stored.head_passed
        work = [Phase("forward and backward", frozen + through + 3 * trained + heads, 3 * weights)]
        if (
            w.stage == "dpo"
        ):  # before the first step, the frozen layers included; where they are kept, a step saves them
            work.append(Phase("the reference, once for these responses", frozen + trained + head * new, weights))
        return work
    weights = body(top) + stored.head_passed
    cache, prompts = page_bytes(model, w.dtype) / PAGE_SIZE, -(-here // w.samples)
    rounds = max(1.0, here / w.at_once)
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
