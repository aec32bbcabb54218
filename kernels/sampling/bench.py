"""Bench sampling from rows of logits: against one read of the logits, and against plain PyTorch.

    python -m kernels.sampling.bench [--rows 32] [--vocab 250880] [--dtype bfloat16] [--device cuda]

Both compute a token, its log-probability and the logsumexp. PyTorch uses topk for top-k and a sort for top-p, as
transformers does. Logits are normal with the given standard deviation: with 8 a nucleus is a few tokens, with 2 tens of
thousands.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor

from kernels.common.bench import json_line, median_s, table
from kernels.sampling import sample_rows

CASES = [
    ("everything", 2.0, {}),
    ("temperature 0.7", 2.0, {"temperature": 0.7}),
    ("top-k 50", 2.0, {"top_k": 50}),
    ("top-p 0.9, sharp", 8.0, {"top_p": 0.9}),
    ("top-p 0.9, flat", 2.0, {"top_p": 0.9}),
]


def plain_pytorch(
    logits_SV: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens, their log-probabilities and the logsumexp."""
    tempered_SV = logits_SV.float() / temperature
    score_SV = tempered_SV
    if top_k:
        score_SV = score_SV.masked_fill(score_SV < score_SV.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        sorted_SV, order_SV = score_SV.sort(descending=False)
        left_out_SV = sorted_SV.softmax(-1).cumsum(-1) <= 1 - top_p
        left_out_SV[:, -1] = False
        score_SV = score_SV.masked_fill(left_out_SV.scatter(1, order_SV, left_out_SV), -torch.inf)
    token_S = torch.multinomial(score_SV.softmax(-1), 1)
    logsumexp_S = tempered_SV.logsumexp(-1)
    return token_S[:, 0], tempered_SV.gather(1, token_S)[:, 0] - logsumexp_S, logsumexp_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=250_880)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    noise_SV = torch.randn(arguments.rows, arguments.vocab, device=arguments.device)
    uniform_S = torch.rand(arguments.rows, dtype=torch.float64, device=arguments.device)
    results = []
    for name, spread, how in CASES:
        logits_SV = (noise_SV * spread).to(getattr(torch, arguments.dtype))
        works = {
            "ours": partial(sample_rows, logits_SV, uniform_S, **how),
            "PyTorch": partial(plain_pytorch, logits_SV, **how),
            # Viewed as float32 for any dtype: arithmetic would limit a sum of bfloat16.
            "one read": logits_SV.view(torch.float32).sum,
        }
        ms = {work: 1e3 * s for work, s in median_s(works, arguments.device, arguments.repeats).items()}
        ratios = {"times_one_read": ms["ours"] / ms["one read"], "faster": ms["PyTorch"] / ms["ours"]}
        results.append({"case": name, **ms, **ratios})
    print(f"{arguments.rows} rows of {arguments.vocab:,}, {arguments.dtype} on {arguments.device}; milliseconds")
    print(
        table(["case", "ours", "PyTorch", "one read", "x one read", "times faster"], [[*r.values()] for r in results])
    )
    print(json_line({**vars(arguments), "cases": results}))


if __name__ == "__main__":
    main()
