"""Time SFT steps in float32 and bfloat16, alternating, and list their operations: `python launch/bench/sft.py`."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.profiler import ProfilerActivity, profile

from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.parse import build_settings, main, parse_settings
from engine.distributed.world import World, start_world
from engine.models import build_model
from engine.presets import presets
from engine.run.folder import Run
from engine.settings import STAGE_SETTINGS, check_at_least, flag
from engine.text.encoding import Example
from engine.training.context import Context
from engine.training.ds_config import read_ds_config
from engine.training.sft import SFTTrainer
from kernels.common.bench import json_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class BenchSettings:
    """The model (random weights; by default the shape of SmolLM2-135M), the size of a step, and the repeats."""

    _argument_group_name = "bench"
    layers: int = flag("number of blocks", 30)
    hidden: int = flag("width of the residual stream", 576)
    intermediate: int = flag("width inside the MLP", 1536)
    heads: int = flag("attention heads", 9)
    kv_heads: int = flag("key/value heads", 3)
    vocab_size: int = flag("tokens in the vocabulary; the head is tied to the embedding", 49_152)
    sequences: int = flag("sequences per step", 16)
    shortest: int = flag("tokens of the shortest sequence; lengths are evenly spaced, half of each is the prompt", 32)
    longest: int = flag("tokens of the longest sequence", 224)
    tokens_per_microbatch: int = flag("tokens per forward", 2048)
    top_layers: str = flag("number of top layers to train", "all")
    deepspeed_config: str | None = flag("DeepSpeed config: ZeRO stage, offload", None)
    repeats: int = flag("measured steps per dtype, after one warm-up step", 5)
    operations: int = flag("number of the most expensive operations to list", 12)

    def __post_init__(self) -> None:
        check_at_least(1, self, "layers", "sequences", "repeats")
        if not 2 <= self.shortest <= self.longest <= self.tokens_per_microbatch:
            raise UserError(
                f"--shortest {self.shortest}, --longest {self.longest}, --tokens-per-microbatch "
                f"{self.tokens_per_microbatch}: give 2 or more, in this order"
            )


def examples_of(s: BenchSettings) -> list[Example]:
    """Return the random sequences of one step."""
    rng, made = random.Random(0), []
    for i in range(s.sequences):
        length = s.shortest + round(i * (s.longest - s.shortest) / max(1, s.sequences - 1))
        made.append(Example(str(i), tuple(rng.randrange(s.vocab_size) for _ in range(length)), length // 2))
    return made


def trainer_of(s: BenchSettings, dtype: torch.dtype, folder: Path, world: World) -> SFTTrainer:
    """Return an SFTTrainer whose every step runs the same sequences."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=s.layers, hidden_size=s.hidden, intermediate_size=s.intermediate,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, vocab_size=s.vocab_size,
        max_position_embeddings=s.longest, tie_word_embeddings=True, initializer_range=s.hidden**-0.5,
    )  # fmt: skip
    settings = build_settings(STAGE_SETTINGS["sft"], presets("sft")["default"], {
        "lang": "en", "lr": 1e-4, "warmup_steps": 0, "schedule": "constant", "batch_size": s.sequences,
        "epochs": s.repeats + 2, "max_length": s.longest, "tokens_per_microbatch": s.tokens_per_microbatch,
        "top_layers": s.top_layers, "trunk_cache": 0.0,
    })  # fmt: skip
    run = Run(folder, "sft", settings, world)
    run.start()
    model = build_model(config, 0).to(world.device, dtype)
    ds_config = read_ds_config(s.deepspeed_config)
    return SFTTrainer(model, examples_of(s), [], Context(*settings, world, run, Console(enabled=False), ds_config))


def operations(step, count: int) -> list[dict]:
    """Return the `count` operations with the largest self time in one step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    found = [x for x in profiler.key_averages() if x.self_cpu_time_total > 0]
    whole = sum(x.self_cpu_time_total for x in found)
    found.sort(key=lambda x: -x.self_cpu_time_total)
    rows = [(x.key, x.count, x.self_cpu_time_total / 1e3, x.self_cpu_time_total / whole) for x in found[:count]]
    return [dict(zip(("operation", "calls", "ms", "share"), row)) for row in rows]


def job(argv: Sequence[str]) -> None:
    """Alternate steps of both dtypes; print medians, their ratio, the operations of one more step, and a JSON line."""
    (s,) = parse_settings((BenchSettings,), argv, "python launch/bench/sft.py", __doc__)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        world = start_world()
        trainers = {name: trainer_of(s, dtype, Path(scratch, name), world) for name, dtype in DTYPES.items()}
        weights = sum(p.numel() for p in trainers["float32"].model.parameters())
        console.header("An SFT step, float32 and bfloat16", {
            "model": f"llama, {s.layers} layers of {s.hidden}, vocabulary {s.vocab_size:,}, {weights:,} weights",
            "step": f"{s.sequences} sequences of {s.shortest} to {s.longest} tokens, "
            f"{s.tokens_per_microbatch:,} a microbatch at most",
            "ranks": f"{world.size}, {torch.get_num_threads()} threads each",
        })  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for turn in range(s.repeats + 1):
            for name, trainer in trainers.items():
                began = time.perf_counter()
                trainer.step(turn)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
        tops = {name: operations(lambda t=t: t.step(s.repeats + 1), s.operations) for name, t in trainers.items()}
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    ratio = medians["float32"] / medians["bfloat16"]
    console.table(["an SFT step", "seconds, median", "fastest", "slowest"], [
        [name, f"{medians[name]:.2f}", f"{min(found):.2f}", f"{max(found):.2f}"] for name, found in seconds.items()
    ])  # fmt: skip
    console.say(f"  float32 / bfloat16: {ratio:.2f}")
    for name, rows in tops.items():
        console.say()
        console.table([f"operations of a {name} step", "calls", "ms", "share"], [
            [row["operation"], f"{row['calls']:,}", f"{row['ms']:.0f}", f"{row['share']:.1%}"] for row in rows
        ])  # fmt: skip
    print(
        json_line({"settings": asdict(s), "seconds": seconds, "medians": medians, "ratio": ratio, "operations": tops})
    )


if __name__ == "__main__":
    main(job)
