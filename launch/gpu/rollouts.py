"""Stage 4: three rollouts in a row in one process: speed, slots in use, memory; and peers on the same workload."""

from __future__ import annotations

import random
import tempfile
from functools import partial
from pathlib import Path

from engine.generation.generate import Step, generate
from engine.generation.sampling import Sampling
from engine.generation.workspace import Workspace
from launch.bench.rollout_floor import ModelCost
from launch.bench.rollout_sides import NO_EOS, GenerateSettings, run_generate
from launch.bench.rollout_workload import Workload, draw_lengths
from launch.gpu.lab import Lab
from launch.gpu.lines import Case, Expected, Measured, Spread, at_least, right
from launch.gpu.models import dtype, label, on_meta, random_model, shape, weight_bytes

FAMILY = "llama"
SAMPLES = 8  # responses to each prompt, which share it
ROLLOUTS = 3
TOP = 4  # trained layers, whose input is kept as in PPO


def cases(lab: Lab) -> list[Case]:
    work = workload(lab)
    floor = _floor_s(lab, work)
    tokens = work.useful_tokens
    lines = [
        Expected("a rollout", "s", floor),
        Expected("tokens per second", "", floor and tokens / floor),
        Expected("speed of the third over the fastest", "", 1.0, at_least(0.95)),
        right("slots in use, third less than first by", "", 0),
        Expected("pages in use at most", ""),
        Expected("peak memory reserved, third", "GB"),
    ]
    peer = [Expected("tokens per second", "")]
    return [
        Case(
            f"{label(lab, FAMILY)}, {ROLLOUTS} rollouts of {len(work.new_tokens)} responses",
            lines,
            partial(_ours, lab, work),
            60,
            18,
        ),
        Case("transformers generate, batches of 64", peer, partial(_transformers, lab, work), 150, 45),
        Case("vLLM", peer, partial(_vllm, lab, work), 150, 60, alone=True, needs="vllm"),
    ]


def workload(lab: Lab) -> Workload:
    """Return prompts of equal length with eight responses each; log-normal lengths, forced by each request's limit."""
    prompts, length, mean, most = lab.pick((32, 256, 128, 512), (2, 20, 6, 16))
    rng, vocabulary = random.Random(0), shape(lab, FAMILY).vocab_size
    made = [tuple(rng.randrange(3, vocabulary) for _ in range(length)) for _ in range(prompts)]
    return Workload(made, SAMPLES, draw_lengths("lognormal", prompts * SAMPLES, most, mean, rng))


def _slots(lab: Lab) -> int:
    return lab.pick(128, 8)


def _floor_s(lab: Lab, work: Workload) -> float | None:
    """Return the lower bound of a rollout: full slots all the time, a shared prompt read once for its responses."""
    cost = ModelCost.of(on_meta(lab, FAMILY))
    steps = work.useful_tokens / _slots(lab)
    own = sum(n * (n + 1) / 2 for n in work.new_tokens)
    of_prompts = sum(len(work.prompts[i // SAMPLES]) / SAMPLES * n for i, n in enumerate(work.new_tokens))
    prompt_tokens = sum(map(len, work.prompts))
    flops = cost.layer_flops * (prompt_tokens + work.useful_tokens) + cost.head_flops * work.useful_tokens
    return lab.floor_s(steps * weight_bytes(cost) + cost.position_bytes * (own + of_prompts), flops)


def _ours(lab: Lab, work: Workload) -> Measured:
    """Run rollouts as PPO does. Each has other random numbers, and the same lengths."""
    model, workspace = random_model(lab, FAMILY), Workspace()
    found = []
    for turn in range(ROLLOUTS):
        steps: list[Step] = []
        lab.reset_peak()
        seconds = lab.seconds(
            lambda turn=turn, steps=steps: generate(
                model, work.requests(), Sampling(1.0), turn, NO_EOS, _slots(lab), model.num_layers - TOP,
                workspace=workspace, on_step=steps.append,
            )
        )  # fmt: skip
        found.append({
            "seconds": seconds, "tokens/s": work.useful_tokens / seconds, "steps": len(steps),
            "slots": max(step.rows for step in steps), "pages": max(step.pages for step in steps), **lab.memory_gb(),
        })  # fmt: skip
    first, third = found[0], found[-1]
    return Measured({
        "a rollout": Spread.of([one["seconds"] for one in found]),
        "tokens per second": Spread.of([one["tokens/s"] for one in found]),
        "speed of the third over the fastest": min(one["seconds"] for one in found) / third["seconds"],
        "slots in use, third less than first by": first["slots"] - third["slots"],
        "pages in use at most": max(one["pages"] for one in found),
        "peak memory reserved, third": third["max_memory_reserved"],
    }, {"rollouts": found})  # fmt: skip


def _transformers(lab: Lab, work: Workload) -> Measured:
    """Run transformers' generate on the same shape with random weights, in batches that end with their longest row."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = shape(lab, FAMILY)
    with lab.device:
        peer = AutoModelForCausalLM.from_config(config, dtype=dtype(lab)).eval()
    peer.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=None)
    result = run_generate(peer, work, GenerateSettings(lab.pick(64, 8), "dynamic"), None)
    assert sum(map(len, result.outputs)) == work.useful_tokens
    return Measured({"tokens per second": work.useful_tokens / result.seconds}, {"seconds": result.seconds})


def _vllm(lab: Lab, work: Workload) -> Measured:
    """Run vLLM on the same shape with its dummy weights; the second of two runs counts."""
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        config = shape(lab, FAMILY)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(Path(folder))
        engine = LLM(
            model=folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_num_seqs=_slots(lab),
            max_model_len=1024,
        )  # fmt: skip
        prompts = [{"prompt_token_ids": list(prompt)} for prompt in work.repeated_prompts]
        rules = [
            SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in work.new_tokens
        ]
        seconds = [lab.seconds(lambda: engine.generate(prompts, rules, use_tqdm=False)) for _ in range(2)]
    return Measured({"tokens per second": work.useful_tokens / seconds[1]}, {"seconds": seconds})
