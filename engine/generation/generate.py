"""Batched generation with a paged key/value cache and slots refilled as sequences finish (continuous batching).

Call `generate` or `stream`. `scheduler.py` decides what runs, `step.py` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from engine.base.errors import UserError
from engine.generation.sample import Request, Sample
from engine.generation.sampling import Sampling
from engine.generation.scheduler import Scheduler
from engine.generation.step import StepEngine
from engine.generation.step_clock import Step, StepClock
from engine.generation.workspace import Workspace

if TYPE_CHECKING:
    from engine.generation.stop_strings import StopMatcher

__all__ = ["Request", "Sample", "Step", "generate", "stream"]

CUDA_STEPS_PER_READ = 8  # how often EOS is looked for: reading makes the host wait for the device


def generate(
    model,
    requests: Sequence[Request],
    sampling: Sampling,
    seed: int,
    eos_id: int | Sequence[int],
    num_slots: int = 128,
    capture_layer: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options,
) -> list[Sample]:
    """Generate a response to each request, in their order. Arguments and options as in `stream`.

    A response depends on its request, the seed and the weights only, up to rounding: few and many rows have different
    kernels.
    """
    responses: list[Sample | None] = [None] * len(requests)
    found = stream(model, requests, sampling, seed, eos_id, num_slots, capture_layer, on_progress, **options)
    for index, response in found:
        responses[index] = response
    return responses  # type: ignore[return-value]


@torch.no_grad()
def stream(
    model,
    requests: Sequence[Request],
    sampling: Sampling,
    seed: int,
    eos_id: int | Sequence[int],
    num_slots: int = 128,
    capture_layer: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    workspace: Workspace | None = None,
    order: str = "given",
    share_prompts: bool = True,
    steps_a_read: int | None = None,
    new_matcher: Callable[[], StopMatcher] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Iterator[tuple[int, Sample]]:
    """Yield (index of the request, finished sample) as soon as each is finished.

    At most num_slots sequences run at once. A slot is refilled when its sequence is found to have ended; EOS is looked
    for every steps_a_read steps. With capture_layer, the input of that layer (the trunk's output) is kept for every
    token of prompt and response. on_progress(finished, new_tokens) and on_step(Step) are called once per step, on a GPU
    on_step when EOS is looked for.

    workspace has the key/value cache and its size; pass the same one to all calls for a model. The default is one of
    what the requests can need, or half of the free memory if that is less. order "longest" starts with the requests
    expected to be longest, so that they do not run alone at the end. new_matcher makes each response's watcher for stop
    strings, which is host work for every token. UserError for a request that can never fit.
    """
    if not requests:
        return
    max_len = max(r.max_length for r in requests)
    if model.max_length is not None and max_len > model.max_length:
        worst = max(range(len(requests)), key=lambda i: requests[i].max_length)
        raise UserError(
            f"request {worst} needs {max_len} positions, the model has {model.max_length}: "
            "shorten the prompt or --max-new-tokens"
        )
    num_slots = min(num_slots, len(requests))
    weight = model.head_weight
    workspace = workspace or Workspace()
    cache = workspace.fit(model, requests, num_slots, capture_layer is not None)
    scheduler = Scheduler(requests, order, num_slots, cache.num_pages, cache.page_size, share_prompts)
    eos_ids = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
    eos_ids = tuple(i for i in eos_ids if 0 <= i < model.vocab_size)  # -1 means none
    engine = StepEngine(
        model, scheduler, workspace, num_slots, max_len, capture_layer, sampling, seed, eos_ids, new_matcher
    )
    steps_a_read = steps_a_read or (CUDA_STEPS_PER_READ if weight.device.type == "cuda" else 1)
    clock = StepClock(weight.device, on_step) if on_step else None
    finished = delivered = steps = 0
    while finished < len(requests):
        if clock:
            clock.begin()
        rows, before = len(engine.rows), delivered + engine.rows.num_new_tokens()
        prompt_tokens, positions_read = engine.step()
        pages = cache.num_pages - scheduler.pool.num_free
        steps += 1
        reads = steps % steps_a_read == 0
        left = engine.leave(reads)
        finished += len(left)
        delivered += sum(len(sample.tokens) for sample in left)
        new_tokens = delivered + engine.rows.num_new_tokens()
        if clock:
            clock.end(rows, prompt_tokens, positions_read, new_tokens - before, pages)
            if reads or finished == len(requests):
                clock.read()
        for sample in left:
            yield sample.index, sample
        if on_progress:
            on_progress(finished, new_tokens)
