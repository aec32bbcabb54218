"""Bench packed attention: time and memory against one masked call, a call per sequence, and the bare products.

python -m kernels.attention.bench [--lengths 30 64 ...] [--heads 8] [--kv-heads 8] [--head-size 64] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention import attention
from kernels.common.bench import extra_bytes, gemm, json_line, median_s, table

LENGTHS = [30, 64, 101, 150, 187, 240, 318, 410]  # 8 sequences, 1,500 tokens
FLOOR = "one bare product"


def masks(lengths: list[int], slopes_H: Tensor) -> tuple[Tensor, Tensor]:
    """Return bool [1, T, T], True where a query sees a key, and float32 [H, T, T], the same mask with ALiBi biases."""
    device = slopes_H.device
    owner_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    column_T = torch.arange(sum(lengths), device=device)
    seen_TT = (owner_T[:, None] == owner_T) & (column_T[:, None] >= column_T)
    distance_TT = column_T - column_T[:, None]
    return seen_TT[None], (slopes_H[:, None, None] * distance_TT).masked_fill(~seen_TT, float("-inf"))


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend over the whole pack in one call. With fewer than four dimensions PyTorch is 5 times slower (not fused)."""
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(*heads_first, attn_mask=mask[None], enable_gqa=grouped)[0].transpose(0, 1)


def by_sequence(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Attend with one causal call per sequence, without ALiBi."""
    parts = zip(*(x.transpose(0, 1)[None].split(lengths, 2) for x in (q, k, v)))
    grouped = q.shape[1] != k.shape[1]
    calls = [scaled_dot_product_attention(*part, is_causal=True, enable_gqa=grouped) for part in parts]
    return torch.cat(calls, 2)[0].transpose(0, 1)


def contenders(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Return the functions to compare, of q, k and v, by name."""
    lengths, device = args.lengths, args.device
    slopes_H = torch.tensor([2 ** (-8 * (h + 1) / args.heads) for h in range(args.heads)], device=device)
    cu = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    seen_1TT, bias_HTT = masks(lengths, slopes_H)
    found = {
        "ours": lambda q, k, v: attention(q, k, v, cu, lengths),
        "ours, ALiBi": lambda q, k, v: attention(q, k, v, cu, lengths, slopes_H),
        "one masked call": partial(masked, mask=seen_1TT),
        "one masked call, ALiBi": partial(masked, mask=bias_HTT.to(dtype)),
        "one call per sequence": partial(by_sequence, lengths=lengths),
    }
    if device == "cuda" and dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        grouped = args.heads != args.kv_heads
        found["varlen_attn"] = lambda q, k, v: varlen_attn(
            q, k, v, cu, cu, max(lengths), max(lengths), window_size=(-1, 0), enable_gqa=grouped
        )
    return found


def measure(args: argparse.Namespace, dtype: torch.dtype, backward: bool) -> list[dict]:
    """Return a row per contender. The floor is one large product with the operations that the visible scores need."""
    tokens, heads, size = sum(args.lengths), args.heads, args.head_size
    generator = torch.Generator().manual_seed(0)

    def random(num_heads: int) -> Tensor:
        return torch.randn(tokens, num_heads, size, generator=generator).to(args.device, dtype)

    qkv = [random(heads), random(args.kv_heads), random(args.kv_heads)]
    grad = random(heads)

    def work(function: Callable) -> Callable[[], object]:
        if not backward:
            return lambda: function(*qkv)
        leaves = [x.requires_grad_() for x in qkv]
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad)

    works = {name: work(function) for name, function in contenders(args, dtype).items()}
    scores = sum(n * (n + 1) // 2 for n in args.lengths)
    products = 7 if backward else 2  # scores, output; backward: scores again, dp, dq, dk, dv
    floor = gemm(tokens, 512, max(1, products * heads * scores * size // (512 * tokens)), dtype, args.device)
    seconds = median_s({FLOOR: floor} | works, args.device, args.repeats)
    extra = {FLOOR: 0} | {name: extra_bytes(w, args.device) for name, w in works.items()}
    phase = "forward + backward" if backward else "forward"
    return [
        {
            "dtype": str(dtype).removeprefix("torch."),
            "phase": phase,
            "what": name,
            "ms": 1e3 * s,
            "x floor": s / seconds[FLOOR],
            "x faster, masked": seconds["one masked call" + (", ALiBi" if "ALiBi" in name else "")] / s,
            "extra MiB": extra[name] / 2**20,
        }
        for name, s in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of each sequence of the pack")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=None, help="default: as many as --heads")
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=None, help="default: both")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    args.kv_heads = args.kv_heads or args.heads
    rows = []
    for dtype in [args.dtype] if args.dtype else ["float32", "bfloat16"]:
        for backward in (False, True):
            rows += measure(args, getattr(torch, dtype), backward)
    print(f"{len(args.lengths)} sequences, {sum(args.lengths)} tokens, {args.heads} heads of {args.head_size}, medians")
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    print(json_line({"bench": "attention", **vars(args), "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
