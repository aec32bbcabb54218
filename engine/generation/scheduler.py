"""Who generates when: requests grouped by prompt, pages reserved for the worst case, prompts cut into pieces.

All of it is on the host. Every page that a request could come to need is reserved when it is admitted, so that nothing
that has begun ever fails or has to be thrown out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.base.errors import UserError
from engine.generation.kv_cache import PagePool, pages_for

ORDERS = ("given", "longest")


@dataclass(frozen=True)
class Request:
    """One response to make. (prompt_id, sample_id) is its address in the random stream.

    Requests with equal prompts that follow each other share the prompt's pages, and its prefill. Before min_new_tokens
    no EOS is sampled. expected_new_tokens is a guess for those who balance or order by length, no limit.
    """

    prompt: tuple[int, ...]
    prompt_id: int
    sample_id: int
    max_new_tokens: int
    min_new_tokens: int = 0
    expected_new_tokens: int | None = None

    @property
    def max_length(self) -> int:
        return len(self.prompt) + self.max_new_tokens

    @property
    def expected_length(self) -> int:
        new_tokens = self.max_new_tokens if self.expected_new_tokens is None else self.expected_new_tokens
        return len(self.prompt) + new_tokens


@dataclass
class SharedPrompt:
    """A prompt and the requests that begin with it."""

    tokens: tuple[int, ...]
    waiting: deque[tuple[int, Request]]  # not yet admitted, each with its index
    shares: bool  # more than one request
    pages: list[int] = field(default_factory=list)
    filled: int = 0  # positions whose keys and values are in the pages
    admitted: list[Admitted] = field(default_factory=list)  # not yet started
    last_hidden_D: Any = None  # the last layer's output at the last token, once there: a tensor
    scores: list[Any] = field(default_factory=list)  # of its tokens but the first, by an engine that is asked for them

    @property
    def is_filled(self) -> bool:
        return self.filled == len(self.tokens)


@dataclass(frozen=True)
class Admitted:
    """A request with a slot and every page it may need. `copied` is (from, to) for a prompt's half-filled last page."""

    index: int
    request: Request
    prompt: SharedPrompt
    slot: int
    pages: list[int]
    copied: tuple[int, int] | None


@dataclass(frozen=True)
class Piece:
    """Positions start to stop-1 of a prompt, run in one step."""

    prompt: SharedPrompt
    start: int
    stop: int


class Scheduler:
    """Admits requests to slots and pages, in order; hands out the prompts' pieces, and the samples that can start."""

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
        """Queue requests behind those that wait already. Returns their indices, which count on from those before.

        UserError, and none of them is queued, if one can never fit.
        """
        assert order in ORDERS, order
        prompts = group_by_prompt(requests, share_prompts, self._num_added)
        for prompt in prompts:
            self._check_fits(prompt)
        if order == "longest":
            prompts.sort(key=lambda p: -max(request.expected_length for _, request in p.waiting))
        self.queue.extend(prompts)
        first, self._num_added = self._num_added, self._num_added + len(requests)
        return range(first, self._num_added)

    def cancel(self, index: int) -> bool:
        """Take a request out of the queue. False if it is not there, or its prompt has begun: then it must start."""
        for prompt in self.queue:
            left = [(i, request) for i, request in prompt.waiting if i != index]
            if len(left) < len(prompt.waiting):
                if prompt.pages:
                    return False
                prompt.waiting = deque(left)
                if not left:
                    self.queue.remove(prompt)
                return True
        return False

    def _check_fits(self, prompt: SharedPrompt) -> None:
        worst, request = max(prompt.waiting, key=lambda pair: pair[1].max_length)
        # While others wait for the half-filled last page of a shared prompt, it is held beside the copy.
        need = pages_for(request.max_length, self.page_size) + (
            prompt.shares and len(prompt.tokens) % self.page_size > 0
        )
        if need > self.pool.num_pages:
            raise UserError(
                f"request {worst} needs {need} pages of {self.page_size} tokens in the cache (prompt "
                f"{len(prompt.tokens)}, up to {request.max_new_tokens} new), the budget holds {self.pool.num_pages}: "
                f"raise --cache-tokens to {need * self.page_size}, or shorten the prompt or --max-new-tokens"
            )

    def admit(self) -> None:
        """Give slots and pages to the requests at the head of the queue, as far as both reach."""
        while self.queue and self.free_slots:
            prompt = self.queue[0]
            if not self._admit_one(prompt):
                return
            if not prompt.waiting:
                self.queue.popleft()

    def _admit_one(self, prompt: SharedPrompt) -> bool:
        index, request = prompt.waiting[0]
        length, is_last = len(prompt.tokens), len(prompt.waiting) == 1
        full, begun = length // self.page_size, pages_for(length, self.page_size)
        to_begin = 0 if prompt.pages else begun
        # The last request takes the prompt's pages over, the half-filled one included; the others share the full ones.
        own = pages_for(request.max_length, self.page_size) - (begun if is_last else full)
        if to_begin + own > self.pool.num_free:
            return False
        if not prompt.pages:
            prompt.pages = self.pool.allocate(begun)
            self.filling.append(prompt)
        elif prompt.is_filled and not prompt.admitted:
            self.ready.append(prompt)
        new_pages = self.pool.allocate(own)
        copied = None
        if is_last:
            pages = prompt.pages + new_pages
        else:
            self.pool.share(prompt.pages[:full])
            pages = prompt.pages[:full] + new_pages
            copied = (prompt.pages[full], new_pages[0]) if begun > full else None
        prompt.waiting.popleft()
        prompt.admitted.append(Admitted(index, request, prompt, self.free_slots.pop(), pages, copied))
        return True

    def pieces(self, max_tokens: int) -> list[Piece]:
        """What to run of the prompts in one step: whole prompts as long as they fit, a longer one bit by bit."""
        pieces: list[Piece] = []
        room = max_tokens
        while self.filling:
            prompt = self.filling[0]
            left = len(prompt.tokens) - prompt.filled
            if pieces and left > room:
                break
            piece = Piece(prompt, prompt.filled, prompt.filled + min(left, room))
            pieces.append(piece)
            prompt.filled = piece.stop
            room -= piece.stop - piece.start
            if not prompt.is_filled:
                break
            self.ready.append(self.filling.popleft())
            if not room:
                break
        return pieces

    def starts(self) -> list[Admitted]:
        """Samples whose prompt is in the cache, those of one prompt behind each other; each is handed out once."""
        started = [sample for prompt in self.ready for sample in prompt.admitted]
        for prompt in self.ready:
            prompt.admitted = []
        self.ready = []
        return started

    def leave(self, sample: Admitted) -> None:
        """Take back a finished request's slot and pages."""
        self.pool.free(sample.pages)
        self.free_slots.append(sample.slot)


def group_by_prompt(requests: Sequence[Request], share: bool = True, first_index: int = 0) -> list[SharedPrompt]:
    """Neighbouring requests with equal prompts, together; each by itself when they shall not share."""
    groups: list[list[tuple[int, Request]]] = []
    for index, request in enumerate(requests, first_index):
        if share and groups and groups[-1][-1][1].prompt == request.prompt:
            groups[-1].append((index, request))
        else:
            groups.append([(index, request)])
    return [SharedPrompt(group[0][1].prompt, deque(group), len(group) > 1) for group in groups]
