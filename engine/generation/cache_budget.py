"""Choose the number of key/value pages of a rollout: what its requests can need, within a budget."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from engine.base.errors import UserError
from engine.generation.kv_cache import PAGE_SIZE, page_bytes, pages_for, spare_pages
from engine.generation.sample import Request

FREE_MEMORY_SHARE = 0.5


def num_pages_for(
    model, requests: Sequence[Request], num_slots: int, cache_tokens: int | None, keeps_trunk: bool = False
) -> int:
    """Return the number of pages to allocate, without the spare page (which the budget includes).

    cache_tokens is the budget in positions; None means half of the free memory of the device.
    """
    return min(pages_needed(requests, num_slots), budget_pages(model, cache_tokens, keeps_trunk))


def pages_needed(requests: Sequence[Request], num_slots: int) -> int:
    """Return the most pages that `num_slots` of the requests can fill at once."""
    worst = sorted((pages_for(r.max_length) for r in requests), reverse=True)[:num_slots]
    return sum(worst) + 1  # plus the half-filled page of a prompt with samples still to admit


def budget_pages(model, cache_tokens: int | None, keeps_trunk: bool) -> int:
    """Return how many pages the budget holds besides the spare one. UserError for less than a page."""
    weight = model.head_weight
    if cache_tokens is None:
        budget = int(free_bytes(weight.device) * FREE_MEMORY_SHARE) // bytes_of_page(model, weight.dtype, keeps_trunk)
    elif cache_tokens < PAGE_SIZE:
        raise UserError(f"--cache-tokens is {cache_tokens}: give {PAGE_SIZE}, one page, or more")
    else:
        budget = cache_tokens // PAGE_SIZE
    return budget - spare_pages(weight.device)


def bytes_of_page(model, dtype: torch.dtype, keeps_trunk: bool) -> int:
    """Bytes of one page: keys, values and, if kept, the trunk's output."""
    trunk = PAGE_SIZE * model.hidden_size * dtype.itemsize if keeps_trunk else 0
    return page_bytes(model, dtype) + trunk


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that can be allocated now.

    On a GPU, blocks that PyTorch has freed and keeps are among them, and a limit on the process's share counts.
    """
    if device.type == "cuda":
        (free, total), used = torch.cuda.mem_get_info(device), torch.cuda.memory_allocated(device)
        share = torch.cuda.get_per_process_memory_fraction(device)
        return min(free + torch.cuda.memory_reserved(device), int(total * share)) - used
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: only memory that was never used
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
