"""Bench of segment_scan: against a memory copy, and against a loop over time.

python -m kernels.segment_scan.bench [--tokens 32768] [--max-len 512] [--device cuda]
"""

from __future__ import annotations

import argparse

import torch

from kernels.common.bench import copy, extra_bytes, json_line, median_s, table
from kernels.segment_scan import segment_scan, segment_scan_reference

DECAY = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--max-len", type=int, default=512, help="lengths are uniform from 1 to this")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--loop", action="store_true", help="also the loop over time, which takes a second or so")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    # Enough lengths even if all were the shortest; the rest is cut off.
    lengths = torch.randint(1, args.max_len + 1, (args.tokens,), generator=generator)
    segment_T = torch.repeat_interleave(torch.arange(args.tokens), lengths)[: args.tokens].to(args.device)
    x_T = torch.randn(args.tokens, generator=generator).to(args.device)
    works = {
        "memory copy": copy(args.tokens, torch.float32, args.device),
        "ours": lambda: segment_scan(x_T, segment_T, DECAY, args.max_len),
    }
    if args.loop:
        works["loop over time"] = lambda: segment_scan_reference(x_T, segment_T, DECAY)
    seconds = median_s(works, args.device, args.repeats)
    extra = {name: 0 if name == "memory copy" else extra_bytes(work, args.device) for name, work in works.items()}
    rows = [
        {
            "what": name,
            "us": 1e6 * s,
            "x floor": s / seconds["memory copy"],
            "extra MiB": extra[name] / 2**20,
        }
        for name, s in seconds.items()
    ]
    print(f"{args.tokens} tokens in segments of 1 to {args.max_len}, float32, medians")
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    print(json_line({"bench": "segment_scan", **vars(args), "rows": rows}))


if __name__ == "__main__":
    main()
