"""Bench attention over the paged cache: against the memory it must read, and one masked call over padded slots.

    python -m kernels.attention_decode.bench [--rows 64] [--positions 512] [--dtype bfloat16] [--device cuda]

Rows have uneven lengths (log-normal, up to --positions); in the last case eight rows share a prompt of --positions.
The floor is the bytes of all keys and values, read once, over the bandwidth of a sum or dot product of large vectors,
measured in the same run. The caches of several layers are read in turn, as in generation, so that none of them stays in
the processor's cache.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention_decode import attention_decode, empty_pages
from kernels.common.bench import json_line, median_s, table

PAGE_SIZE = 64
SAMPLES = 8


def read_bandwidth(num_bytes: float, device: str, repeats: int) -> float:
    """Return the bytes per second of the faster of two reads of a vector of so many bytes."""
    x = torch.ones(int(num_bytes) // 4, device=device)
    seconds = median_s({"sum": x.sum, "dot": lambda: torch.dot(x, x)}, device, repeats)
    return x.numel() * 4 / min(seconds.values())


def paged(lengths: list[int], shared: int, arguments: argparse.Namespace, dtype: torch.dtype):
    """Return the caches of all layers and a table of pages in random order; SAMPLES rows share `shared` positions."""
    pages_of, used = [], 0
    for row, length in enumerate(lengths):
        common = shared // PAGE_SIZE
        if shared and row % SAMPLES == 0:
            prompt, used = list(range(used, used + common)), used + common
        own = -(-length // PAGE_SIZE) - common
        pages_of.append([*(prompt if shared else []), *range(used, used + own)])
        used += own
    page_order = torch.randperm(used, generator=torch.Generator().manual_seed(0))
    table_SB = torch.zeros(len(lengths), max(map(len, pages_of)), dtype=torch.int32)
    for row, pages in enumerate(pages_of):
        table_SB[row, : len(pages)] = page_order[pages]
    sizes = (used, arguments.kv_heads, PAGE_SIZE, arguments.head_size)
    k, v = empty_pages(*sizes, dtype, arguments.device, (arguments.layers,))
    for x in (k, v):  # the same random page everywhere: making so many numbers takes too long
        x.copy_(torch.randn(1, 1, *x.shape[2:], device=arguments.device))
    return k, v, table_SB.to(arguments.device)


def seconds_of(works: dict, arguments: argparse.Namespace) -> dict[str, float]:
    """Return median seconds per layer."""
    return {name: s / arguments.layers for name, s in median_s(works, arguments.device, arguments.repeats).items()}


def uneven_rows(arguments: argparse.Namespace, alibi: bool, rows: int, bandwidth: float) -> dict:
    """Time rows of uneven lengths: ours, and one masked call per layer over slots as long as the longest row."""
    dtype, device = getattr(torch, arguments.dtype), arguments.device
    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(rows, generator=generator).mul(0.7).exp() * arguments.positions / 3
    lengths = spread.long().clamp(1, arguments.positions).tolist() if rows > 1 else [arguments.positions]
    k, v, table_SB = paged(lengths, 0, arguments, dtype)
    length_S = torch.tensor(lengths, dtype=torch.int32, device=device)
    q_SHK = torch.randn(rows, arguments.heads, arguments.head_size, generator=generator).to(device, dtype)
    slopes_H = torch.rand(arguments.heads, generator=generator).to(device) if alibi else None
    longest = max(lengths)
    slots = (arguments.layers, rows, arguments.kv_heads, longest, arguments.head_size)
    k_slots, v_slots = (torch.ones(slots, dtype=dtype, device=device) for _ in range(2))
    positions_N = torch.arange(longest, device=device)
    mask: Tensor = (positions_N < length_S[:, None])[:, None, None]
    if alibi:
        bias_SHN = slopes_H[:, None] * positions_N + torch.where(mask[:, :, 0], 0.0, -torch.inf)
        mask = bias_SHN.to(dtype)[:, :, None]

    def ours() -> None:
        for layer in range(arguments.layers):
            attention_decode(q_SHK, k[layer], v[layer], table_SB, length_S, slopes_H)

    def padded() -> None:
        for k_SGNK, v_SGNK in zip(k_slots, v_slots):
            scaled_dot_product_attention(
                q_SHK[:, :, None], k_SGNK, v_SGNK, attn_mask=mask, enable_gqa=arguments.heads != arguments.kv_heads
            )

    seconds = seconds_of({"ours": ours, "padded": padded}, arguments)
    needed = 2 * sum(lengths) * arguments.kv_heads * arguments.head_size * dtype.itemsize
    return {
        "case": f"{rows} rows{', ALiBi' if alibi else ''}",
        "ms": seconds["ours"] * 1e3,
        "MB": needed / 1e6,
        "times_floor": seconds["ours"] * bandwidth / needed,
        "against": "masked SDPA, padded slots",
        "against_ms": seconds["padded"] * 1e3,
        "faster": seconds["padded"] / seconds["ours"],
    }


def shared_prompts(arguments: argparse.Namespace, bandwidth: float) -> dict:
    """Time SAMPLES rows per prompt of --positions, each with 64 more: the prompt read once, or once per row."""
    dtype, device = getattr(torch, arguments.dtype), arguments.device
    prompt = arguments.positions // PAGE_SIZE * PAGE_SIZE
    rows = max(arguments.rows // SAMPLES, 1) * SAMPLES
    lengths = [prompt + PAGE_SIZE] * rows
    k, v, table_SB = paged(lengths, prompt, arguments, dtype)
    length_S = torch.tensor(lengths, dtype=torch.int32, device=device)
    cu_groups = torch.arange(0, rows + 1, SAMPLES, dtype=torch.int32, device=device)
    shared_R = torch.full((rows // SAMPLES,), prompt, dtype=torch.int32, device=device)
    q_SHK = torch.randn(rows, arguments.heads, arguments.head_size).to(device, dtype)
    separate = paged(lengths, 0, arguments, dtype)

    def ours() -> None:
        for layer in range(arguments.layers):
            attention_decode(q_SHK, k[layer], v[layer], table_SB, length_S, None, None, None, cu_groups, shared_R)

    def not_shared() -> None:
        k, v, table_SB = separate
        for layer in range(arguments.layers):
            attention_decode(q_SHK, k[layer], v[layer], table_SB, length_S)

    seconds = seconds_of({"ours": ours, "not shared": not_shared}, arguments)
    positions = rows // SAMPLES * prompt + rows * PAGE_SIZE
    needed = 2 * positions * arguments.kv_heads * arguments.head_size * dtype.itemsize
    return {
        "case": f"{rows} rows, {SAMPLES} per prompt",
        "ms": seconds["ours"] * 1e3,
        "MB": needed / 1e6,
        "times_floor": seconds["ours"] * bandwidth / needed,
        "against": "ours, nothing shared",
        "against_ms": seconds["not shared"] * 1e3,
        "faster": seconds["not shared"] / seconds["ours"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("rows", 64), ("positions", 512), ("heads", 8), ("kv-heads", 8), ("head-size", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--layers", type=int, default=6, help="caches read in turn")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    bandwidth = read_bandwidth(2**29, arguments.device, arguments.repeats)
    cases = [
        uneven_rows(arguments, False, arguments.rows, bandwidth),
        uneven_rows(arguments, True, arguments.rows, bandwidth),
        uneven_rows(arguments, False, 1, bandwidth),
        shared_prompts(arguments, bandwidth),
    ]
    print(f"{arguments.dtype} on {arguments.device}, {bandwidth / 1e9:.1f} GB/s read; milliseconds per layer")
    print(
        table(["case", "ms", "MB", "x floor", "against", "its ms", "times faster"], [list(c.values()) for c in cases])
    )
    print(json_line({**vars(arguments), "bandwidth_bytes_per_s": bandwidth, "cases": cases}))


if __name__ == "__main__":
    main()
