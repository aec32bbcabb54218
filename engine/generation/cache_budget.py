"""Choose the number of key/value pages of a rollout: what its requests can need, within a budget."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.base.errors import UserError
from engine.generation.kv_cache import PAGE_SIZE, page_bytes, pages_for, spare_pages
from engine.generation.sample import Request

FREE_MEMORY_SHARE = 0.5


def num_pages_for(
    model, requests: Sequence[Request], num_slots: int, cache_tokens: int | None, keeps_trunk: bool, weight: Tensor
) -> int:
    """Return the number of pages to allocate, without the spare page (which the budget includes).

    cache_tokens is the budget in positions; None means half of the free memory of the device.
    """
    if cache_tokens is not None and cache_tokens < PAGE_SIZE:
        raise UserError(f"--cache-tokens is {cache_tokens}: give {PAGE_SIZE}, one page, or more")
    worst = sorted((pages_for(r.max_length) for r in requests), reverse=True)[:num_slots]
    needed = sum(worst) + 1  # plus the half-filled page of a prompt with samples still to admit
    if cache_tokens is not None:
        budget = cache_tokens // PAGE_SIZE
    else:
        bytes_each = bytes_of_page(model, weight.dtype, keeps_trunk)
        budget = int(free_bytes(weight.device) * FREE_MEMORY_SHARE) // bytes_each
    return min(needed, budget - spare_pages(weight.device))


def bytes_of_page(model, dtype: torch.dtype, keeps_trunk: bool) -> int:
    """Bytes of one page: keys, values and, if kept, the trunk's output."""
    trunk = PAGE_SIZE * model.hidden_size * dtype.itemsize if keeps_trunk else 0
    return page_bytes(model, dtype) + trunk


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that can be allocated now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: only memory that was never used
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
