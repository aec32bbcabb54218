"""Schedule generation: group requests by prompt, reserve pages, cut prompts into chunks.

Runs on the host. A request gets every page that it may need when it is admitted, so a running sequence never fails and
is never preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from engine.base.errors import UserError
from engine.generation.kv_cache import PagePool, pages_for
from engine.generation.sample import Request, Sample, SharedPrompt

ORDERS = ("given", "longest")


@dataclass(frozen=True)
class Chunk:
    """Positions start to stop-1 of a prompt, run in one step."""

    prompt: SharedPrompt
    start: int
    stop: int


class Scheduler:
    """Admits requests to slots and pages in order; returns the prompt chunks to run and the samples that can start."""

    def __init__(
        self,
        requests: Sequence[Request],
        order: str,
        num_slots: int,
        num_pages: int,
        page_size: int,
        share_prompts: bool = True,
    ):
        self.page_size = page_size
        self.pool = PagePool(num_pages)
        self.free_slots = list(reversed(range(num_slots)))
        self.queue: deque[SharedPrompt] = deque()
        self.filling: deque[SharedPrompt] = deque()
        self.ready: list[SharedPrompt] = []
        self._num_added = 0
        self.add(requests, order, share_prompts)

    def add(self, requests: Sequence[Request], order: str = "given", share_prompts: bool = True) -> range:
        """Append requests to the queue. Returns their indices, which continue the earlier ones.

        UserError if one can never fit; then none of them is queued.
        """
        assert order in ORDERS, order
        prompts = group_by_prompt(requests, share_prompts, self._num_added)
        for prompt in prompts:
            self._check_fits(prompt)
        if order == "longest":
            prompts.sort(key=lambda p: -max(sample.request.expected_length for sample in p.waiting))
        self.queue.extend(prompts)
        first, self._num_added = self._num_added, self._num_added + len(requests)
        return range(first, self._num_added)

    def cancel(self, index: int) -> bool:
        """Remove a request from the queue. Returns False if it is not there, or if its prompt is already running."""
        for prompt in self.queue:
            left = [sample for sample in prompt.waiting if sample.index != index]
            if len(left) < len(prompt.waiting):
                if prompt.pages:
                    return False
                prompt.waiting = deque(left)
                if not left:
                    self.queue.remove(prompt)
                return True
        return False

    def _check_fits(self, prompt: SharedPrompt) -> None:
        worst = max(prompt.waiting, key=lambda sample: sample.request.max_length)
        request = worst.request
        # A shared prompt keeps its half-filled last page, besides the copies, until its last sample is admitted.
        need = pages_for(request.max_length, self.page_size) + (
            prompt.shares and len(prompt.tokens) % self.page_size > 0
        )
        if need > self.pool.num_pages:
            raise UserError(
                f"request {worst.index} needs {need} pages of {self.page_size} tokens in the cache (prompt "
                f"{len(prompt.tokens)}, up to {request.max_new_tokens} new), the budget holds {self.pool.num_pages}: "
                f"raise --cache-tokens to {need * self.page_size}, or shorten the prompt or --max-new-tokens"
            )

    def admit(self) -> None:
        """Give slots and pages to the first requests of the queue, as long as there are enough."""
        while self.queue and self.free_slots:
            prompt = self.queue[0]
            if not self._admit_one(prompt):
                return
            if not prompt.waiting:
                self.queue.popleft()

    def _admit_one(self, prompt: SharedPrompt) -> bool:
        sample = prompt.waiting[0]
        length, is_last = len(prompt.tokens), len(prompt.waiting) == 1
        full, begun = length // self.page_size, pages_for(length, self.page_size)
        to_begin = 0 if prompt.pages else begun
        # The last request takes over the prompt's pages, including the half-filled one; the others share the full ones.
        own = pages_for(sample.request.max_length, self.page_size) - (begun if is_last else full)
        if to_begin + own > self.pool.num_free:
            return False
        if not prompt.pages:
            prompt.pages = self.pool.allocate(begun)
            self.filling.append(prompt)
        elif prompt.is_filled and not prompt.admitted:
            self.ready.append(prompt)
        new_pages = self.pool.allocate(own)
        if is_last:
            sample.pages = prompt.pages + new_pages
        else:
            self.pool.share(prompt.pages[:full])
            sample.pages = prompt.pages[:full] + new_pages
            sample.copied = (prompt.pages[full], new_pages[0]) if begun > full else None
        sample.slot = self.free_slots.pop()
        prompt.admitted.append(prompt.waiting.popleft())
        return True

    def chunks(self, max_tokens: int) -> list[Chunk]:
        """Return the prompt chunks of one step: whole prompts while they fit, a longer prompt in several chunks."""
        chunks: list[Chunk] = []
        room = max_tokens
        while self.filling:
            prompt = self.filling[0]
            left = len(prompt.tokens) - prompt.filled
            if chunks and left > room:
                break
            chunk = Chunk(prompt, prompt.filled, prompt.filled + min(left, room))
            chunks.append(chunk)
            prompt.filled = chunk.stop
            room -= chunk.stop - chunk.start
            if not prompt.is_filled:
                break
            self.ready.append(self.filling.popleft())
            if not room:
                break
        return chunks

    def starts(self) -> list[Sample]:
        """Return the samples whose prompt is in the cache, grouped by prompt; each sample once."""
        started = [sample for prompt in self.ready for sample in prompt.admitted]
        for prompt in self.ready:
            prompt.admitted = []
        self.ready = []
        return started

    def leave(self, sample: Sample) -> None:
        """Free the slot and the pages of a finished sample."""
        self.pool.free(sample.pages)
        self.free_slots.append(sample.slot)


def group_by_prompt(requests: Sequence[Request], share: bool = True, first_index: int = 0) -> list[SharedPrompt]:
    """Group neighbouring requests with equal prompts; without `share`, each request is its own group."""
    prompts: list[SharedPrompt] = []
    for index, request in enumerate(requests, first_index):
        if not (share and prompts and prompts[-1].tokens == request.prompt):
            prompts.append(SharedPrompt(request.prompt, deque(), shares=False))
        prompt = prompts[-1]
        prompt.shares = len(prompt.waiting) > 0
        prompt.waiting.append(Sample(index, request, prompt))
    return prompts
