"""Plan a stage from a config alone: memory by part, seconds by phase, and whether it fits."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import BloomConfig, LlamaConfig, PretrainedConfig

from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.generation.kv_cache import PAGE_SIZE
from engine.models.decoder import Decoder
from engine.models.hf import empty_model, load_config
from engine.planning.memory import Part, Workload, memory, peaks, phases, within_budget
from engine.settings import (
    FEWEST_SAMPLES,
    PretrainSettings,
    TrunkSettings,
    check_above_zero,
    check_at_least,
    check_top_layers,
    flag,
    split_of,
)

# (layers, width, heads), for LLaMA also the MLP width. From the published configs.
BLOOM = {
    "bloom-560m": (24, 1024, 16), "bloom-1b1": (24, 1536, 16), "bloom-1b7": (24, 2048, 16),
    "bloom-3b": (30, 2560, 32), "bloom-7b1": (30, 4096, 32),
}  # fmt: skip
LLAMA = {"llama-7b": (32, 4096, 32, 11008), "llama-13b": (40, 5120, 40, 13824), "llama-65b": (80, 8192, 64, 22016)}
CLUSTERS = [(1, 24), (1, 40), (1, 80), (1, 141), (4, 80), (8, 80)]  # GPUs, GB each


@dataclass(frozen=True)
class PlanSettings(TrunkSettings):
    """The stage, its model and batch, and the machine."""

    _argument_group_name = "plan"
    model: str = flag("a model directory, a config.json, or a known name", "bloom-7b1")
    stage: str = flag("pretrain, sft, reward, dpo or ppo", "ppo", choices=["pretrain", "sft", "reward", "dpo", "ppo"])
    gpu_memory: float = flag("GB of one GPU", 80.0)
    ranks: int = flag("GPUs", 1)
    zero: int = flag("ZeRO stage", 0, choices=[0, 1, 2, 3])
    offload: bool = flag("optimizer state in host memory, as ds_configs/zero2_offload.json", False)
    dtype: str = flag("weights", "bfloat16", choices=["bfloat16", "float16", "float32"])
    top_layers: str | None = flag(
        "trained layers from the top, or all (default: pretrain, sft and dpo all, others 4)", None
    )
    bottom_layers: int | None = flag(
        "pretrain: with a number of top layers, also trained lowest layers, embeddings and head", None
    )
    trunk: str = flag("ppo: reward model on the policy's trunk, or on its own", "shared",
                      choices=["shared", "own"])  # fmt: skip
    advantage: str = flag("ppo: with a critic (gae), or without one (rloo, grpo)", "gae", choices=list(FEWEST_SAMPLES))
    samples_per_prompt: int = flag("responses to each prompt, which share its rows", 1)
    critic: str = flag(
        "ppo: value head on the policy's top layers, or separate top layers", "shared", choices=["shared", "separate"]
    )
    reward_offload: bool = flag("ppo: keep a reward model with its own trunk in host memory between uses", False)
    park_trunk: bool = flag("ppo: keep the frozen layers in host memory during updates", False)
    lora_rank: int = flag("sft: rank of the factors trained in place of the weights; 0: the weights themselves", 0)
    recompute: bool = flag("run trained layers again in their backward instead of keeping their activations", False)
    rewards: int = flag("ppo: reward models, all of the policy's size", 1)
    ptx_tokens: int = flag("ppo: tokens of pretraining text in each optimizer step", 0)
    minibatch_size: int = flag("ppo: rollouts per optimizer step", 32)
    rollouts: int = flag("ppo: rollouts per iteration; others: sequences per step", 128)
    slots: int = flag("ppo: rollouts generated at once per rank", 128)
    cache_tokens: int | None = flag("ppo: key/value cache size in tokens (default: as in launch/ppo.py)", None)
    prompt_tokens: int = flag("tokens per prompt", 256)
    new_tokens: int = flag("tokens per response", 256)
    tokens_per_microbatch: int = flag("tokens per forward on one rank", 4096)
    ppo_epochs: int = flag("passes over the rollouts of each iteration", 4)
    trunk_cache: float = flag("GB of trunk outputs to keep on the device; the rest goes to the host", 16.0)
    tflops: float = flag("10^12 operations per second that a rank reaches", 400.0)
    bandwidth: float = flag("GB per second that a rank reads", 3000.0)
    all: bool = flag("print one line per known model, one column per machine, instead", False)
    json: bool = flag("print one JSON line instead of tables", False)

    def __post_init__(self) -> None:
        if self.top_layers is not None:
            check_top_layers(self.top_layers)
        sizes = ("gpu_memory", "ranks", "rollouts", "slots", "prompt_tokens", "new_tokens", "ppo_epochs", "tflops")
        check_above_zero(self, *sizes, "bandwidth", "minibatch_size")
        check_at_least(0, self, "trunk_cache", "rewards", "ptx_tokens", "lora_rank")
        check_at_least(0, self, "bottom_layers")
        check_at_least(2 * PAGE_SIZE, self, "cache_tokens")
        check_at_least(1, self, "samples_per_prompt")
        if self.bottom_layers is not None and self.stage != "pretrain":
            raise UserError(f"--bottom-layers is {self.bottom_layers}, --stage is {self.stage}: only pretrain has it")
        for name, bits in (("--trunk-dtype", self.trunk_dtype), ("--embedding-dtype", self.embedding_dtype)):
            if self.stage == "pretrain" and bits != "model":
                raise UserError(f"{name} is {bits}, --stage is pretrain, which has no codes: leave it out")
        if self.lora_rank and self.stage != "sft":
            raise UserError(f"--lora-rank is {self.lora_rank}, --stage is {self.stage}: only SFT trains factors")
        if self.advantage != "gae" and self.critic == "separate":
            raise UserError(f"--critic is separate: --advantage {self.advantage} has no critic, leave it out")
        if self.rollouts % self.samples_per_prompt:
            raise UserError(
                f"--rollouts is {self.rollouts}, --samples-per-prompt is {self.samples_per_prompt}: give a multiple"
            )
        if self.tokens_per_microbatch < self.prompt_tokens + self.new_tokens:
            raise UserError(
                f"--tokens-per-microbatch is {self.tokens_per_microbatch}, a sequence has "
                f"{self.prompt_tokens + self.new_tokens} tokens: raise the first"
            )

    @property
    def top(self) -> str:
        """The number of trained layers, or all."""
        return self.top_layers or ("all" if self.stage in ("pretrain", "sft", "dpo") else "4")

    @property
    def trains_embedding(self) -> bool:
        return self.top == "all" and not self.lora_rank

    def frozen_layers(self, num_layers: int) -> int:
        """Return how many layers have linear layers that are not trained."""
        split = split_of(self.top, num_layers)
        return num_layers if self.lora_rank else split or 0


def config_of(name: str) -> PretrainedConfig:
    """Return the config of a known name, a directory, or a config.json."""
    if name in BLOOM:
        layers, hidden, heads = BLOOM[name]
        return BloomConfig(vocab_size=250_880, hidden_size=hidden, n_layer=layers, n_head=heads)
    if name in LLAMA:
        layers, hidden, heads, inner = LLAMA[name]
        return LlamaConfig(
            vocab_size=32_000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=heads, intermediate_size=inner, tie_word_embeddings=False,
        )  # fmt: skip
    path = Path(name)
    if not path.exists():
        raise UserError(f"--model {name} is neither a path nor a known name: give one of {', '.join((*BLOOM, *LLAMA))}")
    return load_config(path.parent if path.name == "config.json" else path)


def workload(s: PlanSettings, num_layers: int) -> Workload:
    """Return the workload of the settings for a model with this many layers."""
    split = split_of(s.top, num_layers)
    PretrainSettings(top_layers=s.top, bottom_layers=s.bottom_layers).middle(num_layers)  # its errors
    s.quantised_layers(num_layers)
    updates = s.ppo_epochs * -(-s.rollouts // s.minibatch_size)
    return Workload(
        s.stage, getattr(torch, s.dtype), s.ranks, s.zero, s.offload, None if split is None else num_layers - split,
        s.rollouts, s.slots, s.prompt_tokens, s.new_tokens, s.tokens_per_microbatch, s.trunk == "shared",
        s.critic == "separate", s.reward_offload, s.trunk_cache, s.ppo_epochs, s.samples_per_prompt,
        s.advantage == "gae", s.rewards, s.lora_rank, s.recompute, s.minibatch_size, updates * s.ptx_tokens,
        s.trunk_dtype, s.bottom_layers, s.embedding_dtype, s.park_trunk, s.cache_tokens,
    )  # fmt: skip


@lru_cache(
    maxsize=4
)  # what a microbatch takes is remembered for a model: a second plan of it takes a tenth of the time
def shapes_of(name: str, dtype: str) -> Decoder:
    """Return the model of a name or path without memory for its weights."""
    return empty_model(config_of(name), name).to(getattr(torch, dtype))


def largest(model, w: Workload, name: str, step: int, gpu_bytes: float) -> int:
    """Return the largest value of a workload field that fits, a multiple of `step` up to 2^22; 0 if none does."""

    def peak(count: int) -> float:
        return max(
            peaks(memory(model, within_budget(model, dataclasses.replace(w, **{name: count * step}), gpu_bytes)))
        )

    return step * most_within(peak, gpu_bytes, (1 << 22) // step)


def most_at_once(model, w: Workload, gpu_bytes: float) -> int:
    """Return the most rollouts that one rank can generate at once; 0 if none."""
    fits = largest(model, w, "slots", 1, gpu_bytes)
    return within_budget(model, dataclasses.replace(w, slots=fits), gpu_bytes).at_once if fits else 0


def most_within(size: Callable[[int], float], limit: float, most: int) -> int:
    """Return the largest count from 1 to `most` whose size is at most the limit, 0 if none is; sizes must not fall.

    A straight line through two sizes gives the next count to try, because sizes grow evenly; each third try is halfway.
    """
    at_low = size(1)
    if at_low > limit:
        return 0
    low, high, middle, tries = 1, most + 1, 2, 0
    while high - low > 1:
        middle, tries = min(max(middle, low + 1), high - 1), tries + 1
        at = size(middle)
        slope = (at - at_low) / (middle - low)
        if at <= limit:
            low, at_low = middle, at
        else:
            high = middle
        if tries % 3 == 0:
            middle = (low + high) // 2
        else:
            middle = low + int(min((limit - at_low) / slope, most)) if slope > 0 else most
    return low


def show(s: PlanSettings, model, w: Workload, parts: Sequence[Part], console: Console) -> dict[str, object]:
    """Print the tables of one plan; return its numbers."""
    gib, gpu_bytes = 1e9, s.gpu_memory * 1e9
    rollout, update = peaks(parts)
    fits = max(rollout, update) <= gpu_bytes
    generating = s.stage == "ppo"
    head = ["GB on one GPU", *(["generating"] if generating else []), "updating"]

    def cells(name: str, at_rollout: float, at_update: float) -> list[str]:
        numbers = [at_rollout, at_update] if generating else [at_update]
        return [name, *(f"{x / gib:.2f}" for x in numbers)]

    rows = [cells(p.name, p.rollout, p.update) for p in parts if p.rollout or p.update]
    console.table(head, [*rows, cells("together", rollout, update)])
    verdict = "fits" if fits else "does not fit"
    console.say(f"\n  {verdict} in {s.gpu_memory:g} GB ({max(rollout, update) / gib:.1f} GB at its peak)")
    step = s.prompt_tokens + s.new_tokens
    tokens = largest(model, w, "tokens_per_microbatch", step, gpu_bytes)
    console.say(f"  largest --tokens-per-microbatch that fits: {tokens:,}" if tokens else "  no microbatch fits")
    result: dict[str, object] = {"fits": fits, "rollout_bytes": rollout, "update_bytes": update, "tokens": tokens}
    if generating:
        slots = most_at_once(model, w, gpu_bytes)
        console.say(f"  largest number of rollouts generated at once that fits (--slots): {slots:,}")
        result["slots"] = slots
    work = phases(model, w)
    seconds = [p.seconds(s.tflops * 1e12, s.bandwidth * 1e9) for p in work]
    console.say()
    console.table(
        ["per iteration" if generating else "per step", "TFLOP", "GB moved", "seconds"],
        [[p.name, f"{p.flops / 1e12:.1f}", f"{p.bytes / gib:.0f}", f"{t:.2f}"] for p, t in zip(work, seconds)]
        + [["together", f"{sum(p.flops for p in work) / 1e12:.1f}", "", f"{sum(seconds):.2f}"]],
    )
    console.say(f"  at {s.tflops:g} TFLOP/s and {s.bandwidth:g} GB/s: a lower bound at these rates")
    return (
        result | {p.name: t for p, t in zip(work, seconds)} | {"parts": {p.name: [p.rollout, p.update] for p in parts}}
    )


def overview(s: PlanSettings, console: Console) -> list[dict[str, object]]:
    """Print how many rollouts (PPO) or tokens per microbatch fit: models as rows, machines as columns."""
    rows, found = [], []
    for name in (*BLOOM, *LLAMA):
        model = shapes_of(name, s.dtype)
        row = [name]
        for ranks, gb in CLUSTERS:
            w = dataclasses.replace(workload(s, model.num_layers), ranks=ranks, zero=3 if ranks > 1 else s.zero)
            field, step = ("slots", 1) if s.stage == "ppo" else ("tokens_per_microbatch", 512)
            w = dataclasses.replace(w, rollouts=1 << 16)  # enough that their trunk outputs go to the host
            count = most_at_once(model, w, gb * 1e9) if field == "slots" else largest(model, w, field, step, gb * 1e9)
            row.append(f"{count:,}" if count else "-")
            found.append({"model": name, "gpus": ranks, "gb": gb, field: count})
        rows.append(row)
    unit = "rollouts generated at once per GPU" if s.stage == "ppo" else "tokens per microbatch"
    console.say(f"\n{s.stage}: {unit} that fit (- : none); several GPUs with ZeRO-3\n")
    console.table(["model", *(f"{n} x {gb} GB" for n, gb in CLUSTERS)], rows)
    return found


def job(argv: Sequence[str]) -> None:
    """Print the plan. The exit status is 0 whether it fits or not."""
    epilog = f"{__doc__} Known models: {', '.join((*BLOOM, *LLAMA))}."
    (s,) = parse_settings((PlanSettings,), argv, "launch/plan.py", epilog)
    console = Console(enabled=not s.json)
    if s.all:
        result: object = overview(s, console)
    else:
        model = shapes_of(s.model, s.dtype)
        w = workload(s, model.num_layers)
        top = "all" if w.top_layers is None else f"top {w.top_layers} of {model.num_layers}"
        if s.bottom_layers is not None:
            top = f"embeddings, head, bottom {s.bottom_layers} and {top}"
        bits = [f"frozen ones {s.trunk_dtype}"] if s.trunk_dtype != "model" else []
        bits += [f"embedding and head {s.embedding_dtype}"] if s.embedding_dtype != "model" else []
        codes = f" ({', '.join(bits)})" if bits else ""
        console.header(f"{s.stage} of {s.model}, {sum(p.numel() for p in model.parameters()) / 1e9:.2f} B weights", {
            "trained": f"{top} layers, {s.dtype}{codes}, ZeRO-{s.zero}{' with offload' if s.offload else ''}",
            "machine": f"{s.ranks} x {s.gpu_memory:g} GB",
            "batch": f"{s.rollouts} sequences of {s.prompt_tokens} + {s.new_tokens} tokens, "
            f"{s.tokens_per_microbatch:,} tokens per microbatch",
        })  # fmt: skip
        console.say()
        w = within_budget(model, w, s.gpu_memory * 1e9)
        result = show(s, model, w, memory(model, w), console)
    if s.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main(job)
