"""Time decoding with weights as they are, in int8 and in int4 in turn: `python launch/bench/quantised.py --model DIR`.

Before that, compares each quantised model with an ordinary one of the same values, and stops if they differ by more
than rounding: on a GPU, this checks kernels/coded_linear.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn.functional import linear

from engine.batch import PackedBatch
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.device import choose_device
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.generation.workspace import Workspace
from engine.models import load_config, load_model
from engine.models.quantised import QuantisedLinear, stored_weights
from engine.settings import TRUNK_DTYPES, check_at_least, flag
from kernels.common.bench import json_line, median_s
from kernels.linear_logprob import linear_logprob

NO_EOS = -1
LONG, SHORT = 200, 7  # tokens of the compared packs: one runs as a pack, one as decoding rows do
# The largest mean difference of log-probabilities, in nats, that sums in another order explain; to be checked on a GPU.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class BenchSettings:
    """The model and the sizes."""

    _argument_group_name = "bench"
    model: str = flag("the model, a Hugging Face directory; all its layers are stored in each dtype")
    head: bool = flag("store the embedding and the head in each dtype, too", False)
    batches: list[int] | None = flag("sequences decoded at once (default: 1 8 32)", None)
    prompt_tokens: int = flag("tokens per prompt", 32)
    new_tokens: int = flag("decode steps", 64)
    repeats: int = flag("measured runs; the table shows medians", 3)
    dtype: str | None = flag("what is computed in (default: bfloat16 on a GPU, else float32)", None,
                             choices=["float32", "bfloat16"])  # fmt: skip

    def __post_init__(self) -> None:
        check_at_least(1, self, "prompt_tokens", "new_tokens", "repeats")


def job(argv: Sequence[str]) -> None:
    """Print how far values and codes differ, a table of milliseconds per decode step, and one JSON line last."""
    (s,) = parse_settings((BenchSettings,), argv, "python launch/bench/quantised.py", __doc__)
    device = choose_device()
    layers, console = load_config(s.model).num_hidden_layers, Console()
    dtype = getattr(torch, s.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    models = {
        name: load_model(s.model, dtype, device, name, layers, name if s.head else "model") for name in TRUNK_DTYPES
    }
    difference = {name: compare(name, model) for name, model in models.items() if name != "model"}
    for name, nats in difference.items():
        console.say(f"{name}: as an ordinary model of the same values, but for {nats:.2g} nats a token (mean)")
    gigabytes = {name: sum(w.nbytes for _, w in stored_weights(m)) / 1e9 for name, m in models.items()}
    rows, results = [["GB of weights", *(f"{x:.2f}" for x in gigabytes.values())]], {}
    for batch in s.batches or (1, 8, 32):
        works: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            workspace = Workspace()
            for steps in (0, s.new_tokens):
                works[f"{name} {steps}"] = partial(decode, model, workspace, batch, s.prompt_tokens, 1 + steps)
        seconds = median_s(works, device.type, s.repeats)
        step = {n: (seconds[f"{n} {s.new_tokens}"] - seconds[f"{n} 0"]) / s.new_tokens for n in models}
        rows.append([f"batch {batch}", *(f"{1e3 * x:.1f} ms" for x in step.values())])
        results[batch] = step
    name = str(dtype).removeprefix("torch.")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    console.say(f"{s.model}, {where}: time of a decode step, computing in {name}\n")
    console.table(["weights of the layers" + " and the head" * s.head, name, *TRUNK_DTYPES[1:]], rows)
    print(json_line({"settings": asdict(s), "step_s": results, "gb": gigabytes, "difference": difference}))


@torch.no_grad()
def compare(name: str, model) -> float:
    """Return the mean difference of log-probabilities from those with dequantised layers, over two packs.

    RuntimeError if it is more than rounding.
    """
    worst = 0.0
    for length in (LONG, SHORT):
        batch = PackedBatch.from_sequences(
            [[(7 * i) % model.vocab_size for i in range(length)]], model.head_weight.device
        )
        found_T, handles = logprobs(model, batch), []
        for layer in model.modules():
            if isinstance(layer, QuantisedLinear):
                handles.append(layer.register_forward_hook(lambda it, x, _: linear(*x, it.weight, it.bias)))
        worst = max(worst, (found_T - logprobs(model, batch)).abs().mean().item())
        for handle in handles:
            handle.remove()
    limit = ROUNDING[model.head_weight.dtype]
    if not worst <= limit:
        raise RuntimeError(
            f"{name}: log-probabilities differ by {worst:.3g} nats from those of the same values, rounding explains "
            f"{limit:g}: the kernel of quantised layers is wrong on this machine"
        )
    return worst


def logprobs(model, batch: PackedBatch) -> torch.Tensor:
    """Return float32 [T]: log-probabilities of the next tokens of a pack."""
    h_TD = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers))
    return linear_logprob(h_TD, model.head_weight, batch.target_T)[0][:-1]


def decode(model, workspace: Workspace, batch: int, prompt_tokens: int, new_tokens: int) -> None:
    """Generate so many tokens after each of `batch` prompts; the first comes with the prefill."""
    prompts = [tuple((7 * i + j) % model.vocab_size for j in range(prompt_tokens)) for i in range(batch)]
    requests = [Request(prompt, i, 0, new_tokens) for i, prompt in enumerate(prompts)]
    generate(model, requests, Sampling(), 0, NO_EOS, num_slots=batch, workspace=workspace)


if __name__ == "__main__":
    main(job)
