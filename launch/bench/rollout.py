"""Time rollouts against the machine's floor and transformers: `python launch/bench/rollout.py --model DIR`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.device import choose_device
from engine.generation.cache_budget import bytes_of_page
from engine.generation.kv_cache import PAGE_SIZE
from engine.generation.scheduler import ORDERS
from engine.generation.workspace import Workspace
from engine.models import load_model
from engine.settings import DTYPE_HELP, DTYPES, check_above_zero, check_at_least, flag
from launch.bench.rollout_floor import Machine, ModelCost, decode_share, measure
from launch.bench.rollout_sides import (
    Result,
    StaticCaches,
    best_generate_settings,
    check_same_weights,
    load_peer,
    run_continuous,
    run_generate,
    run_ours,
)  # fmt: skip
from launch.bench.rollout_workload import Workload, check_same_lengths, make_workload
from launch.common import choose_dtype

PEERS = ("unshared", "generate", "continuous", "transformers")


@dataclass(frozen=True)
class BenchSettings:
    """The workload, and the sides to compare."""

    _argument_group_name = "bench"
    model: str = flag("the model, a Hugging Face directory")
    data: str | None = flag("file of prompts, instruction records (default: random tokens)", None)
    num_prompts: int = flag("number of prompts", 64)
    prompt_tokens: int = flag("tokens per random prompt; longest prompt from --data", 32)
    max_new_tokens: int = flag("longest response in tokens", 512)
    mean_new_tokens: float = flag("mean of the log-normal lengths", 128.0)
    lengths: str = flag(
        "response lengths: fixed (all the longest), uniform, lognormal, or a file of lengths", "lognormal"
    )
    responses: int = flag("responses per prompt", 1)
    slots: int = flag("sequences generated at once", 64)
    order: str = flag("order in which requests start: as given, or the longest first", "given", choices=list(ORDERS))
    cache_tokens: int | None = flag("key/value cache size in tokens (default: half of the free memory)", None)
    vs: list[str] | None = flag(f"also run, alternating: {', '.join(PEERS)} (generate and continuous)", None)
    peer_batch: list[int] | None = flag("batch sizes to try for transformers", None)
    repeats: int = flag("measured runs per side; the table shows medians", 1)
    warmups: int = flag("uncounted runs per side before, for compilation and allocation", 1)
    seed: int = flag("seed of prompts and lengths", 0)
    dtype: str = flag(DTYPE_HELP, "auto", choices=[*DTYPES])
    json: bool = flag("also print the numbers as one JSON line at the end", False)
    plot: str | None = flag("plot rows and seconds of every step to this file", None)

    def __post_init__(self) -> None:
        check_at_least(1, self, "num_prompts", "prompt_tokens", "max_new_tokens", "responses", "slots", "repeats")
        check_at_least(0, self, "warmups")
        check_above_zero(self, "mean_new_tokens")
        for name in self.vs or ():
            if name not in PEERS:
                raise UserError(f"--vs {name} is unknown: one of {', '.join(PEERS)}")


def job(argv: Sequence[str]) -> None:
    """Measure the machine, run the sides in turn, print the table."""
    (settings,) = parse_settings((BenchSettings,), argv, "python launch/bench/rollout.py", __doc__)
    device = choose_device()
    console = Console()
    dtype = choose_dtype(settings.dtype, device, console.say)
    model = load_model(settings.model, dtype, device)
    workload = make_workload(
        settings.model, model.vocab_size, settings.num_prompts, settings.prompt_tokens, settings.responses,
        settings.lengths, settings.max_new_tokens, settings.mean_new_tokens, settings.data, settings.seed,
    )  # fmt: skip
    machine, cost = measure(device, dtype), ModelCost.of(model)
    new = workload.new_tokens
    console.header("Rollout benchmark", {
        "model": f"{settings.model} ({model.config.model_type}, {model.num_layers} layers of {model.hidden_size}, "
                 f"vocabulary {model.vocab_size:,}, {str(dtype).removeprefix('torch.')})",
        "work": f"{len(workload.prompts)} prompts of up to {max(map(len, workload.prompts))} tokens, "
                f"{settings.responses} responses each, {settings.lengths} lengths: {min(new)}-{max(new)}, "
                f"mean {statistics.fmean(new):.0f}, {sum(new):,} in total",
        "machine": f"{device.type}, {torch.get_num_threads()} threads, {machine.bandwidth / 1e9:.1f} GB/s, "
                   f"{machine.flops / 1e9:.0f} GFLOP/s, measured now",
    })  # fmt: skip
    workspace = Workspace(settings.cache_tokens)  # allocated once for all runs, as in sampling and PPO
    sides = make_sides(model, workload, settings, workspace, console)
    results: dict[str, list[Result]] = {name: [] for name in sides}
    peak_bytes = dict.fromkeys(sides, 0)  # includes warm-ups, where caches are allocated
    for turn in range(-settings.warmups, settings.repeats):
        for name, run in sides.items():
            result = run()
            check_same_lengths(name, result.outputs, workload)
            console.say(f"  {name}: {result.seconds:.2f} s" + (", not counted" if turn < 0 else ""))
            results[name] += [result] if turn >= 0 else []
            peak_bytes[name] = max(peak_bytes[name], result.peak_bytes)
    prefill = run_ours(model, workload.requests(most=1), settings.slots, settings.order, workspace, True)
    numbers = {name: summary(runs, results["ours"], workload) for name, runs in results.items()}
    for name, peak in peak_bytes.items():
        numbers[name]["peak_memory_mb"] = peak / 1e6
    numbers["ours"] |= own_numbers(results["ours"][-1], prefill, workload, model, settings, cost, machine)
    show(console, numbers)
    if settings.plot:
        from launch.bench.rollout_plot import plot_steps

        plot_steps(settings.plot, results["ours"][-1].steps)
    if settings.json:
        print(json.dumps({"settings": asdict(settings), "machine": asdict(machine), "sides": numbers}))


def make_sides(
    model, workload: Workload, settings: BenchSettings, workspace: Workspace, console: Console
) -> dict[str, Callable[[], Result]]:
    """Return {side: function without arguments}, ours first. Each side allocates its cache in the first run."""
    ours = [model, workload.requests(), settings.slots, settings.order, workspace]
    sides = {"ours": lambda: run_ours(*ours, True)}
    wanted = set(settings.vs or ())
    if "unshared" in wanted:
        sides["ours, unshared"] = lambda: run_ours(*ours, False)
    if wanted - {"unshared"}:
        peer = load_peer(settings.model, model.head_weight.dtype, model.head_weight.device)
        difference = check_same_weights(model, peer, workload.prompts)
        console.say(f"  same weights: the logits of the first prompt differ by at most {difference:.1e}")
        batches = settings.peer_batch or [8, 16, 32, 64]
        if wanted & {"generate", "transformers"}:
            best, caches = best_generate_settings(peer, workload, batches), StaticCaches(peer, workload)
            console.say(f"  transformers' generate: {best}, the best of batches {', '.join(map(str, batches))}")
            sides["transformers generate"] = lambda: run_generate(peer, workload, best, caches)
        if wanted & {"continuous", "transformers"}:
            sides["transformers continuous"] = lambda: run_continuous(peer, workload, settings.slots)
    return sides


def summary(runs: Sequence[Result], ours: Sequence[Result], workload: Workload) -> dict[str, float | None]:
    """Return the numbers of one side: medians over its runs, and its time over ours."""
    seconds = statistics.median(r.seconds for r in runs)
    steps = sorted(runs[-1].step_seconds)
    same = sum(a == b for a, b in zip(runs[-1].outputs, ours[-1].outputs))
    return {
        "seconds": seconds,
        "useful_tokens_per_s": workload.useful_tokens / seconds,
        "ours_over_this": seconds / statistics.median(r.seconds for r in ours),
        "step_p50_ms": 1e3 * steps[len(steps) // 2] if steps else None,
        "step_p95_ms": 1e3 * steps[int(len(steps) * 0.95)] if steps else None,
        "same_tokens": same / len(ours[-1].outputs),
    }


def own_numbers(
    result: Result,
    prefill: Result,
    workload: Workload,
    model,
    settings: BenchSettings,
    cost: ModelCost,
    machine: Machine,
) -> dict[str, float]:
    """Return the numbers that need our recorded steps."""
    steps, slots = result.steps, min(settings.slots, len(workload.new_tokens))
    decoding = [s for s in steps if s.rows and not s.prompt_tokens]
    seconds = sum(s.seconds for s in steps)
    page = bytes_of_page(model, model.head_weight.dtype, False)
    return {
        "prefill_tokens_per_s": sum(s.prompt_tokens for s in prefill.steps) / prefill.seconds,
        "decode_tokens_per_s": sum(s.new_tokens for s in decoding) / max(sum(s.seconds for s in decoding), 1e-9),
        "slot_occupancy": sum(s.rows * s.seconds for s in steps) / seconds / slots,
        "cache_peak_tokens": max(s.pages for s in steps) * PAGE_SIZE,
        "cache_peak_mb": max(s.pages for s in steps) * page / 1e6,
        "decode_share_of_floor": decode_share(steps, cost, machine),
        "floor_ms": 1e3 * statistics.fmean(cost.floor_s(s, machine) for s in decoding) if decoding else 0.0,
    }


def show(console: Console, numbers: dict[str, dict[str, float | None]]) -> None:
    """Print the table of all sides, then our own numbers."""

    def cell(x: float | None, form: str) -> str:
        return "-" if x is None else form.format(x)

    head = ["side", "useful tokens/s", "seconds", "ours is", "step p50", "p95", "memory", "same tokens"]
    rows = [
        [
            name, f"{n['useful_tokens_per_s']:.1f}", f"{n['seconds']:.2f}", f"{n['ours_over_this']:.2f} x",
            cell(n["step_p50_ms"], "{:.1f} ms"), cell(n["step_p95_ms"], "{:.1f} ms"),
            f"+{n['peak_memory_mb']:,.0f} MB", f"{n['same_tokens']:.0%}",
        ]
        for name, n in numbers.items()
    ]  # fmt: skip
    console.say()
    console.table(head, rows)
    own = numbers["ours"]
    console.say(
        f"\n  ours: prefill {own['prefill_tokens_per_s']:,.0f} tokens/s; decode {own['decode_tokens_per_s']:,.0f} "
        f"tokens/s, {own['decode_share_of_floor']:.0%} of the floor ({own['floor_ms']:.1f} ms per step);\n"
        f"  slots {own['slot_occupancy']:.0%} occupied; cache at most {own['cache_peak_tokens']:,.0f} tokens, "
        f"{own['cache_peak_mb']:,.0f} MB"
    )


if __name__ == "__main__":
    main(job)
