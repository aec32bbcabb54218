"""How many pages of key/value cache a rollout takes: what its requests can need, within a budget."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.base.errors import UserError
from engine.generation.kv_cache import PAGE_SIZE, page_bytes, pages_for, spare_pages
from engine.generation.scheduler import Request

FREE_MEMORY_SHARE = 0.5


def num_pages_for(
    model, requests: Sequence[Request], num_slots: int, cache_tokens: int | None, keeps_trunk: bool, weight: Tensor
) -> int:
    """Pages to take once, the spare one aside, which comes out of the budget too.

    cache_tokens is the budget in positions, None for half of the free memory of the device.
    """
    if cache_tokens is not None and cache_tokens < PAGE_SIZE:
        raise UserError(f"--cache-tokens is {cache_tokens}: give {PAGE_SIZE}, one page, or more")
    worst = sorted((pages_for(r.max_length) for r in requests), reverse=True)[:num_slots]
    needed = sum(worst) + 1  # one more for the half-filled page of a prompt whose samples are still being admitted
    if cache_tokens is not None:
        budget = cache_tokens // PAGE_SIZE
    else:
        bytes_each = bytes_of_page(model, weight.dtype, keeps_trunk)
        budget = int(free_bytes(weight.device) * FREE_MEMORY_SHARE) // bytes_each
    return min(needed, budget - spare_pages(weight.device))


def bytes_of_page(model, dtype: torch.dtype, keeps_trunk: bool) -> int:
    """Keys, values and, where it is kept, the trunk's output of one page's positions."""
    trunk = PAGE_SIZE * model.hidden_size * dtype.itemsize if keeps_trunk else 0
    return page_bytes(model, dtype) + trunk


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: what was never used, which is less than what could be freed
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
