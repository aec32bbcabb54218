"""Sides of the rollout benchmark: our engine, transformers' generate, and its continuous batching.

Each generates the workload greedily without EOS, and returns its tokens and times.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, StaticCache, StoppingCriteria
from transformers.utils import logging as transformers_logging

from engine.generation.generate import Request, Step, generate
from engine.generation.sampling import Sampling
from engine.generation.workspace import Workspace
from launch.bench.rollout_workload import Workload

NO_EOS = -1
CALIBRATION_TOKENS = 6


@dataclass(frozen=True)
class Result:
    """One run of one side: tokens per response, total and step seconds, and the rise of peak memory in bytes."""

    outputs: list[list[int]]
    seconds: float
    step_seconds: list[float]  # of steps that only decode
    peak_bytes: int
    steps: list[Step] = field(default_factory=list)


def run_ours(model, requests: Sequence[Request], slots: int, order: str, workspace: Workspace, share: bool) -> Result:
    """Run our engine and record every step."""
    steps: list[Step] = []
    memory = PeakMemory(model.head_weight.device)
    began = time.perf_counter()
    responses = generate(
        model, requests, Sampling(0.0), 0, NO_EOS, slots,
        workspace=workspace, order=order, share_prompts=share, on_step=steps.append,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    decoding = [s.seconds for s in steps if s.rows and not s.prompt_tokens]
    return Result([list(r.tokens) for r in responses], seconds, decoding, memory.peak(), steps)


def load_peer(model_dir: str, dtype: torch.dtype, device: torch.device):
    """Load the model in transformers, with its default (fused) attention."""
    transformers_logging.set_verbosity_error()
    peer = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).to(device).eval()
    peer.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=None)
    return peer


@torch.inference_mode()
def check_same_weights(model, peer, prompts: Sequence[tuple[int, ...]]) -> float:
    """Return the largest logit difference over the first prompt. AssertionError if it exceeds rounding."""
    from engine.batch import PackedBatch

    batch = PackedBatch.from_sequences(prompts[:1], model.head_weight.device)
    ours = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers)) @ model.head_weight.T
    theirs = peer(batch.tokens_T[None]).logits[0]
    difference = (ours.float() - theirs.float()).abs().max().item()
    tolerance = (1e-3 if ours.dtype == torch.float32 else 1e-1) * theirs.float().abs().max().item()
    assert difference <= tolerance, f"logits differ by {difference}: not the same weights"
    return difference


class _Clock(StoppingCriteria):
    """Record when each step ends; never stop."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids, scores, **_):
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class GenerateSettings:
    """Arguments of transformers' generate: batch size and cache type."""

    batch: int
    cache: str

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.cache} cache"


class StaticCaches:
    """transformers' static caches, one per batch size, allocated once and long enough for the whole workload.

    generate would allocate a new one in each call, as long as its longest so far.
    """

    def __init__(self, peer, workload: Workload):
        self.config = peer.config
        self.length = max(map(len, workload.prompts)) + max(max(workload.new_tokens), 2 * CALIBRATION_TOKENS)
        self._of_batch: dict[int, StaticCache] = {}

    def get(self, batch: int) -> StaticCache:
        """Return the empty cache of this batch size."""
        cache = self._of_batch.setdefault(batch, StaticCache(self.config, max_cache_len=self.length))
        cache.reset()
        return cache


@torch.inference_mode()
def run_generate(peer, workload: Workload, settings: GenerateSettings, caches: StaticCaches) -> Result:
    """Run transformers' generate over batches in order, each up to its longest response."""
    prompts, new_tokens, device = workload.repeated_prompts, workload.new_tokens, peer.device
    outputs: list[list[int]] = []
    step_seconds: list[float] = []
    memory = PeakMemory(device)
    began = time.perf_counter()
    for i in range(0, len(prompts), settings.batch):
        part, counts = prompts[i : i + settings.batch], new_tokens[i : i + settings.batch]
        made, times = _generate(peer, part, max(counts), caches if settings.cache == "static" else None)
        step_seconds += [b - a for a, b in zip(times, times[1:])]
        outputs += [tokens[:n] for tokens, n in zip(made, counts)]
    return Result(outputs, time.perf_counter() - began, step_seconds, memory.peak())


def _generate(
    peer, prompts: Sequence[tuple[int, ...]], new_tokens: int, caches: StaticCaches | None
) -> tuple[list[list[int]], list[float]]:
    width, clock = max(map(len, prompts)), _Clock()
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=peer.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=peer.device)
    made = peer.generate(
        ids, attention_mask=mask, max_new_tokens=new_tokens, stopping_criteria=[clock],
        past_key_values=caches and caches.get(len(prompts)),
    )  # fmt: skip
    return made[:, width:].tolist(), clock.times


@torch.inference_mode()
def best_generate_settings(peer, workload: Workload, batches: Sequence[int]) -> GenerateSettings:
    """Return the batch size and cache with the least predicted time: steps needed times a step timed at half length."""
    all_prompts, new_tokens, caches = workload.repeated_prompts, workload.new_tokens, StaticCaches(peer, workload)
    best, least = None, float("inf")
    for batch in sorted({min(b, len(all_prompts)) for b in batches}):
        longest = [max(new_tokens[i : i + batch]) for i in range(0, len(all_prompts), batch)]
        steps = sum(longest)
        prompts = [prompt + (0,) * (steps // len(longest) // 2) for prompt in all_prompts[:batch]]
        for cache in ("dynamic", "static"):
            if cache == "static" and not getattr(peer, "_can_compile_fullgraph", False):
                continue  # transformers checks the same before it builds one
            _, times = _generate(peer, prompts, CALIBRATION_TOKENS, caches if cache == "static" else None)
            predicted = steps * min(b - a for a, b in zip(times, times[1:]))
            if predicted < least:
                best, least = GenerateSettings(batch, cache), predicted
    assert best is not None
    return best


def run_continuous(peer, workload: Workload, slots: int, page_size: int = 64) -> Result:
    """Run transformers' continuous batching with a limit per request. Its thread sets inference mode itself."""
    prompts, new_tokens = workload.repeated_prompts, workload.new_tokens
    longest = max(len(p) + n for p, n in zip(prompts, new_tokens))
    blocks = slots * -(-longest // page_size) + slots
    config = ContinuousBatchingConfig(
        page_size=page_size, num_blocks=blocks, max_batch_tokens=max(512, slots), max_requests_per_batch=slots,
        use_cuda_graph=None if peer.device.type == "cuda" else False,
    )  # fmt: skip
    memory = PeakMemory(peer.device)
    began = time.perf_counter()
    made: dict[str, list[int]] = {}
    kept = {"continuous_batching_config": config, "block": True, "persistent_manager": True}  # and so its cache
    with peer.continuous_batching_context_manager(**kept) as manager:
        ids = [
            manager.add_request(list(p), f"request {i}", max_new_tokens=n, eos_token_id=NO_EOS)
            for i, (p, n) in enumerate(zip(prompts, new_tokens))
        ]
        while len(made) < len(ids):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                made[result.request_id] = list(result.generated_tokens)
            elif result is None and not manager.is_running():
                raise RuntimeError(
                    f"transformers' continuous batching stopped after {len(made)} of {len(ids)} requests"
                )
    return Result([made[i] for i in ids], time.perf_counter() - began, [], memory.peak())


class PeakMemory:
    """Measure the rise of this process's memory, or of its GPU's, since construction."""

    def __init__(self, device: torch.device):
        self.device = device
        gc.collect()  # else memory freed later from an earlier side would hide part of the rise
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif os.path.exists("/proc/self/clear_refs"):
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # reset the peak to the current resident memory
        self.before = self._read("VmRSS")

    def peak(self) -> int:
        """Return the rise in bytes."""
        return self._read("VmHWM") - self.before

    def _read(self, name: str) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            with open("/proc/self/status", encoding="ascii") as file:
                return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
        except OSError:  # not Linux
            return 0
