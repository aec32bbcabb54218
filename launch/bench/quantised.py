"""Time decoding with weights in float32, int8 and int4 in turn: `python launch/bench/quantised.py --model DIR`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.generation.generate import Request, generate
from engine.generation.kv_cache import PAGE_SIZE, KVCache, pages_for
from engine.generation.sampling import Sampling
from engine.models import load_config, load_model
from engine.models.quantised import stored_weights
from engine.settings import TRUNK_DTYPES, check_at_least, flag
from kernels.common.bench import json_line, median_s

NO_EOS = -1


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

    def __post_init__(self) -> None:
        check_at_least(1, self, "prompt_tokens", "new_tokens", "repeats")


def job(argv: Sequence[str]) -> None:
    """Print a table of milliseconds per decode step, and one JSON line last."""
    (s,) = parse_settings((BenchSettings,), argv, "python launch/bench/quantised.py", __doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers, console = load_config(s.model).num_hidden_layers, Console()
    models = {
        name: load_model(s.model, torch.float32, device, name, layers, name if s.head else "model")
        for name in TRUNK_DTYPES
    }
    gigabytes = {name: sum(w.nbytes for _, w in stored_weights(m)) / 1e9 for name, m in models.items()}
    rows, results = [["GB of weights", *(f"{x:.2f}" for x in gigabytes.values())]], {}
    for batch in s.batches or (1, 8, 32):
        works: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            cache = KVCache(model, batch * pages_for(s.prompt_tokens + s.new_tokens + PAGE_SIZE) + 1)
            for steps in (0, s.new_tokens):
                works[f"{name} {steps}"] = partial(decode, model, cache, batch, s.prompt_tokens, 1 + steps)
        seconds = median_s(works, device.type, s.repeats)
        step = {n: (seconds[f"{n} {s.new_tokens}"] - seconds[f"{n} 0"]) / s.new_tokens for n in models}
        rows.append([f"batch {batch}", *(f"{1e3 * x:.1f} ms" for x in step.values())])
        results[batch] = step
    console.say(f"{s.model}, {torch.get_num_threads()} threads: time of a decode step, computing in float32\n")
    console.table(["weights of the layers" + " and the head" * s.head, "float32", *TRUNK_DTYPES[1:]], rows)
    print(json_line({"settings": asdict(s), "step_s": results, "gb": gigabytes}))


def decode(model, cache: KVCache, batch: int, prompt_tokens: int, new_tokens: int) -> None:
    """Generate so many tokens after each of `batch` prompts; the first comes with the prefill."""
    prompts = [tuple((7 * i + j) % model.vocab_size for j in range(prompt_tokens)) for i in range(batch)]
    requests = [Request(prompt, i, 0, new_tokens) for i, prompt in enumerate(prompts)]
    generate(model, requests, Sampling(), 0, NO_EOS, num_slots=batch, cache=cache)


if __name__ == "__main__":
    main(job)
