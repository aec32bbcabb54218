"""What generation keeps from one call to the next: the key/value cache, and the CUDA graphs of its decode steps.

Otherwise every call would allocate a cache and capture graphs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.generation.cache_budget import budget_pages, pages_needed
from engine.generation.decode_graphs import DecodeGraphs
from engine.generation.decode_tape import DecodeTape
from engine.generation.kv_cache import KVCache
from engine.generation.sample import Request
from engine.models.quantised import stored_weights


class Workspace:
    """The cache and the recorded decode steps of one model. Pass the same one to all calls of `generate`.

    cache_tokens is the size of the cache in positions; None means half of the memory that is free at the first call.
    The cache has as many pages as the requests so far could use, up to that, and is allocated again only to grow.
    """

    def __init__(self, cache_tokens: int | None = None):
        self.cache_tokens = cache_tokens
        self.cache: KVCache | None = None
        self.trunk_PND: Tensor | None = None  # trunk outputs, paged like the cache: a shared prompt's are kept once
        self._most_pages: int | None = None
        self._num_pages = 0  # of the cache, also while it is released
        self._graphs: DecodeGraphs | None = None
        self._captured_with: tuple[int, ...] = ()  # the split and the weights' addresses
        self._room = (0, 0)  # rows, and pages a row, for which graphs were wanted so far

    def fit(self, model, requests: Sequence[Request], num_slots: int, keeps_trunk: bool) -> KVCache:
        """Return the cache, large enough for these requests if the budget allows it. UserError for a bad budget."""
        if self._most_pages is None:
            self._most_pages = budget_pages(model, self.cache_tokens, keeps_trunk)
        return self.allocate(model, min(pages_needed(requests, num_slots), self._most_pages), keeps_trunk)

    def allocate(self, model, num_pages: int, keeps_trunk: bool = False) -> KVCache:
        """Return the cache with at least this many pages, and room for the trunk's outputs if they are kept."""
        weight = model.head_weight
        if self.cache is None or self._num_pages < num_pages:
            self.release()  # first, so that the new cache can have this memory
            self._num_pages = max(num_pages, self._num_pages)
            self.cache = KVCache(model, self._num_pages)
        if keeps_trunk and self.trunk_PND is None:
            shape = (self.cache.num_pages, self.cache.page_size, model.hidden_size)
            self.trunk_PND = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        return self.cache

    def release(self) -> None:
        """Give back the memory of the cache and the graphs. The next call allocates a cache of the same size."""
        self.cache = self.trunk_PND = self._graphs = None

    def recorded(self, model, num_slots: int, pages_a_row: int, split: int) -> DecodeGraphs | DecodeTape | None:
        """Return a recorded decode step for up to so many rows; None where recording does not work.

        Graphs read weights at the addresses of their capture: where these have changed (ZeRO-3, --park-trunk), they are
        captured again. A CPU's tape takes one step to record and is new in each call.
        """
        assert self.cache is not None, "allocate the cache first"
        if self.cache.spare_page is None:
            return DecodeTape.of(model, self.cache, num_slots, pages_a_row, split)
        now = (split, *(w.data_ptr() for _, w in stored_weights(model)))
        room = (max(self._room[0], num_slots), max(self._room[1], pages_a_row))
        if self._graphs is None or now != self._captured_with or room != self._room:
            self._graphs = None
            self._graphs = DecodeGraphs.of(model, self.cache, *room, split)
            self._captured_with, self._room = now, room
        return self._graphs
