"""How long linear_logprob takes: beside the bare products it must do, plain PyTorch, and Liger and TRL where installed.

    python -m kernels.linear_logprob.bench [--vocab 250880] [--hidden 256 1024] [--rows 256] [--dtype float32 bfloat16]
    python -m kernels.linear_logprob.bench --memory [--rows 4096]

The floor is the products alone, in the same dtype, by torch, into memory that is there already: one forward; with
backward three (the logits again, dh), and a fourth for dW where W is trained. dW is new memory in every backward, whose
first touch is no part of a product: `fresh dW` is that alone, in the same run. All but Liger, which has none, compute
the entropy too. --memory: the peak of an SFT step, everything but the parameters counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.common.bench import extra_bytes, gemm, json_line, median_s, table
from kernels.linear_logprob import linear_logits, linear_logprob

MIB = 1 << 20


def plain(h_TD: Tensor, W_VD: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy from all the logits at once."""
    log_p_TV = (h_TD @ W_VD.T).float().log_softmax(-1)
    return log_p_TV.gather(1, target_T[:, None])[:, 0], -(log_p_TV.exp() * log_p_TV).sum(-1)


def peers() -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """The implementations compared, by name; those not installed are left out."""
    found: dict[str, Callable[..., tuple[Tensor, ...]]] = {
        "ours": lambda h, W, target: linear_logprob(h, W, target)[::2],
        "plain": plain,
    }
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as trl_columns

        def trl(h: Tensor, W: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            return ChunkedLogProbFunction.apply(h, W, None, target, 1.0, trl_columns, None, 1.0, ("entropy",))[:2]

        found["TRL"] = trl
    except ImportError:
        pass
    try:
        from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

        def liger(h: Tensor, W: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            return (LigerFusedLinearPPOBase.chunk_forward(h[None], W, target[None])[0],)

        found["Liger, no entropy"] = liger
    except ImportError:
        pass
    return found


def with_backward(function: Callable[..., tuple[Tensor, ...]], h: Tensor, W: Tensor, target: Tensor) -> tuple:
    """What a step holds at its end: outputs and gradients."""
    outputs = function(h, W, target)
    torch.stack([out.float().sum() for out in outputs]).sum().backward()
    kept = (*outputs, h.grad, W.grad)
    h.grad = W.grad = None
    return kept


def row(what: str, by: str, dtype: str, hidden: int, seconds: dict[str, float], floor: float, run, device: str) -> dict:
    """One line of the table."""
    return {
        "pass": what,
        "dtype": dtype,
        "D": hidden,
        "by": by,
        "ms": seconds[by] * 1e3,
        "floor_ms": floor * 1e3,
        "times_floor": seconds[by] / floor,
        "fresh_dW_ms": seconds.get("fresh dW", 0.0) * 1e3,
        "extra_MiB": extra_bytes(run, device) / MIB,
    }


def case(arguments: argparse.Namespace, hidden: int, name: str) -> list[dict]:
    """Every pass at one hidden size and dtype."""
    dtype, device, rows, vocab = getattr(torch, name), arguments.device, arguments.rows, arguments.vocab
    torch.manual_seed(0)
    h = torch.randn(rows, hidden, device=device).to(dtype).requires_grad_()
    frozen = torch.randn(vocab, hidden, device=device).mul_(hidden**-0.5).to(dtype)
    trained = frozen.clone().requires_grad_()
    target = torch.randint(vocab, (rows,), device=device)
    logits = gemm(rows, hidden, vocab, dtype, device)
    dz = logits()
    dh, dW = torch.empty_like(h, requires_grad=False), torch.empty_like(frozen)
    products = {
        "logits": logits,
        "dh": lambda: torch.mm(dz, frozen, out=dh),
        "dW": lambda: torch.mm(dz.T, h.detach(), out=dW),
        "fresh dW": lambda: torch.empty_like(frozen).zero_(),
    }
    whole = torch.empty(rows, vocab, device=device)

    def to_sample() -> None:
        linear_logits(h.detach(), frozen, whole if device == "cpu" else None)

    seconds = median_s({"logits": logits, "ours": to_sample}, device, arguments.repeats)
    results = [row("logits to sample from", "ours", name, hidden, seconds, seconds["logits"], to_sample, device)]
    for what, W in (
        ("forward", None),
        ("forward+backward, W frozen", frozen),
        ("forward+backward, W trained", trained),
    ):

        def forward(function):
            with torch.no_grad():
                return function(h, frozen, target)

        def work(function, W=W):
            return (lambda: forward(function)) if W is None else lambda: with_backward(function, h, W, target)

        works = {name: work(function) for name, function in peers().items()}
        needed = {k: f for k, f in products.items() if k == "logits" or (k == "dh" and W is not None) or W is trained}
        seconds = median_s({**needed, **works}, device, arguments.repeats)
        floor = seconds["logits"] * (1 if W is None else 2)
        floor += sum(seconds[k] for k in ("dh", "dW") if k in needed)
        for name_of_work, run in works.items():
            results.append(row(what, name_of_work, name, hidden, seconds, floor, run, device))
    return results


def step_peak(arguments: argparse.Namespace, name: str, function: Callable[..., tuple[Tensor, ...]]) -> float:
    """Peak MiB of an SFT step beyond its parameters: tied embeddings, two small layers, cross entropy, backward."""
    dtype, hidden = getattr(torch, name), arguments.hidden[0]
    torch.manual_seed(0)
    E_VD = torch.randn(arguments.vocab, hidden, device=arguments.device).mul_(hidden**-0.5).to(dtype).requires_grad_()
    layers = torch.nn.Sequential(
        torch.nn.Linear(hidden, 4 * hidden), torch.nn.GELU(), torch.nn.Linear(4 * hidden, hidden)
    )
    layers.to(arguments.device, dtype)
    tokens = torch.randint(arguments.vocab, (arguments.rows + 1,), device=arguments.device)

    def step() -> None:
        x_TD = F.embedding(tokens[:-1], E_VD)
        (-function(x_TD + layers(x_TD), E_VD, tokens[1:])[0].sum()).backward()

    return extra_bytes(step, arguments.device) / MIB


def cross_entropy(h_TD: Tensor, W_VD: Tensor, target_T: Tensor) -> tuple[Tensor]:
    """The loss as most trainers write it."""
    return (-F.cross_entropy((h_TD @ W_VD.T).float(), target_T, reduction="none"),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab", type=int, default=250_880)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256])
    parser.add_argument("--rows", type=int, help="tokens: 256 by default, 4096 with --memory")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="the peak memory of an SFT step instead of times")
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or (4096 if arguments.memory else 256)
    print(
        f"V = {arguments.vocab:,}, {arguments.rows:,} tokens on {arguments.device}, {torch.get_num_threads()} threads"
    )
    if arguments.memory:
        functions = {"ours": linear_logprob, "plain": cross_entropy}
        results = [
            {"dtype": name, "by": by, "peak_MiB": step_peak(arguments, name, function)}
            for name in arguments.dtype
            for by, function in functions.items()
        ]
        print(table(["dtype", "SFT step", "peak MiB beyond parameters"], [list(r.values()) for r in results]))
    else:
        results = [r for hidden in arguments.hidden for name in arguments.dtype for r in case(arguments, hidden, name)]
        header = ["pass", "dtype", "D", "by", "ms", "floor ms", "x floor", "fresh dW ms", "extra MiB"]
        print(table(header, [list(r.values()) for r in results]))
    print(json_line({**vars(arguments), "results": results}))


if __name__ == "__main__":
    main()
