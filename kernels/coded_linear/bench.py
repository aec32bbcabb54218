"""Bench products with codes on CUDA: against the ordinary product, and dequantising to memory before it.

    python -m kernels.coded_linear.bench [--outputs 11008] [--inputs 4096] [--rows 1 16 64 512 4096] [--dtype bfloat16]

Several weights are multiplied with in turn, as in a model, so that none stays in the L2 cache. With TRITON_INTERPRET=1,
`--device cpu` runs small sizes in Triton's interpreter: for a test.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.coded_linear import coded_linear, coded_linear_gradient
from kernels.common.bench import json_line, median_s, table
from kernels.common.codes import GROUP, Codes


def random_codes(outputs: int, inputs: int, bits: int, dtype: torch.dtype, device: str) -> Codes:
    """Return a weight of random codes, with scales that keep its values small; the values have the dtype."""
    groups = -(-inputs // GROUP)
    low, high, stored = (-127, 128, torch.int8) if bits == 8 else (0, 256, torch.uint8)
    codes = torch.randint(low, high, (outputs, groups * GROUP * bits // 8), dtype=stored, device=device)
    return Codes(codes, torch.full((outputs, groups), 2.0**-9, dtype=torch.bfloat16, device=device), inputs, dtype)


def each(function: Callable[..., Tensor], x: Tensor, weights: list) -> Callable[[], None]:
    """Return a function that computes with every weight in turn."""

    def work() -> None:
        for weight in weights:
            function(x, weight)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outputs", type=int, default=11_008)
    parser.add_argument("--inputs", type=int, default=4_096)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 512, 4_096])
    parser.add_argument("--layers", type=int, default=8, help="weights that are multiplied with in turn")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    dtype, shape = getattr(torch, args.dtype), (args.outputs, args.inputs)
    coded = {
        f"int{bits}": [random_codes(*shape, bits, dtype, args.device) for _ in range(args.layers)] for bits in (8, 4)
    }
    plain = [weight.values() for weight in coded["int8"]]
    rows = []
    for count in args.rows:
        x_TI, grad_TN = (torch.randn(count, n, device=args.device).to(dtype) for n in (args.inputs, args.outputs))
        works = {"ordinary": each(linear, x_TI, plain), "ordinary, gradient": each(torch.mm, grad_TN, plain)}
        for name, weights in coded.items():
            works |= {
                name: each(coded_linear, x_TI, weights),
                f"{name}, dequantised first": each(lambda x, w: linear(x, w.values()), x_TI, weights),
                f"{name}, gradient": each(coded_linear_gradient, grad_TN, weights),
            }
        seconds = {name: s / args.layers for name, s in median_s(works, args.device, args.repeats).items()}
        for name, s in seconds.items():
            peer = seconds["ordinary, gradient" if "gradient" in name else "ordinary"]
            stored = coded[name.split(",")[0]][0][:2] if name.startswith("int") else (plain[0],)
            gigabytes = sum(part.nbytes for part in stored) / 1e9
            rows.append({"rows": count, "what": name, "us": 1e6 * s, "x ordinary": s / peer, "GB/s": gigabytes / s})
    print(f"{args.outputs} x {args.inputs}, {args.dtype} on {args.device}; GB/s of the stored weight, medians")
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    print(json_line({"bench": "coded_linear", **vars(args), "results": rows}))


if __name__ == "__main__":
    main()
