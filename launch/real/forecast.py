"""How long a real run will take and how much memory: the operations of each step over the rate of this machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from engine.base.atomic import write_text
from engine.base.errors import UserError
from engine.base.records import read_records
from engine.generation.kv_cache import PAGE_SIZE, page_bytes
from engine.models import load_config
from engine.models.hf import empty_model
from engine.planning.activations import forward_bytes
from engine.planning.memory import Workload, memory, peaks, phases
from engine.settings import BatchSettings, SampleSettings, is_function_name
from engine.text.tokenizer import load_tokenizer
from evaluation.settings import EvaluateSettings
from launch.real.stages import BEST_OF, HELDOUT, NEW_TOKENS, SAMPLES
from launch.real.step import Step, flag_of, stage_of
from launch.score import ScoreSettings

FORECAST = "forecast.json"  # of each step, in the folder of the language
SIDE = 2048  # of the square product that measures the machine
# Share of that rate which a stage reaches on a CPU: measured with Gemma 3 270M, whose layers are small. bfloat16: AMX,
# whose rate only large products reach; ppo and evaluate are computed from older shares. float32: AVX2, in Chinese.
REACHED = {
    torch.bfloat16: {"sft": 0.3, "reward": 0.5, "ppo": 0.32, "sample": 0.17, "score": 0.4, "evaluate": 0.18},
    torch.float32: {"sft": 0.76, "reward": 0.58, "ppo": 0.68, "sample": 0.7, "score": 0.57, "evaluate": 0.7},
}
START_SECONDS = 10.0  # of a process, until it has read tokenizer and weights
START_GB = 1.0  # Python, PyTorch and the codecs of a large vocabulary
READ_RECORDS = 400  # records whose tokens are counted


@dataclass(frozen=True)
class Expected:
    """What a step should take."""

    seconds: float
    peak_gb: float


def write_forecast(base: Path, todo: Sequence[Step], file: Path, dtype: str) -> Iterator[str]:
    """Forecast the steps that are left, remember it in `file` for the report, and yield it in lines, one a stage."""
    known = read_forecast(file)
    left = [step for step in todo if not step.is_done()]
    model, rate = _Model(base, getattr(torch, dtype)), measured_rate(getattr(torch, dtype))
    by_stage: dict[str, list[Expected]] = {}
    for step in left:
        if stage_of(step) in REACHED[model.dtype]:
            known[step.name] = expected = model.expected(step, rate)
            by_stage.setdefault(stage_of(step), []).append(expected)
    write_text(file, json.dumps({name: vars(expected) for name, expected in known.items()}, indent=1))
    hours = sum(expected.seconds for stage in by_stage.values() for expected in stage) / 3600
    yield f"{len(todo)} steps, {len(todo) - len(left)} done; about {hours:.1f} hours left at {rate / 1e9:,.0f} GFLOP/s"
    for stage, steps in by_stage.items():
        minutes, peak = sum(x.seconds for x in steps) / 60, max(x.peak_gb for x in steps)
        yield f"  {stage:10} {len(steps):2} x {minutes / len(steps):5.0f} minutes, up to {peak:4.1f} GB"


def read_forecast(file: Path) -> dict[str, Expected]:
    """Read what write_forecast wrote: {step: what it should take}; {} without a file."""
    if not file.is_file():
        return {}
    return {name: Expected(**row) for name, row in json.loads(file.read_text(encoding="utf-8")).items()}


def measured_rate(dtype: torch.dtype) -> float:
    """Return the operations per second of a large product."""
    a = torch.randn(SIDE, SIDE).to(dtype)
    a @ a
    began = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * SIDE**3 / (time.perf_counter() - began)


@dataclass(frozen=True)
class _Lengths:
    """Records of a file, responses of a record, and mean tokens of a prompt and of a response."""

    records: int
    responses: float
    prompt: float
    response: float


# Of the rankings that are yet to be made: rankings for each prompt in each half, and different answers in one.
RANKED, DIFFERENT = 0.49, 2.8


def _questions(row: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the question of a benchmark's row with its options: twice in TruthfulQA, for MC1 and MC2.

    Nothing of a damaged row, which the evaluation leaves out, too.
    """
    lettered = [text for name, text in row.items() if name.startswith("option_") and text]
    for options in (lettered, row.get("mc1_targets_choices"), row.get("mc2_targets_choices")):
        question = row.get("question") or row.get("instruction")
        if options and all(isinstance(text, str) for text in (question, *options)):
            yield question, options


class _Model:
    """Operations and memory of the steps on one base model."""

    def __init__(self, base: Path, dtype: torch.dtype):
        self.model, self.dtype = empty_model(load_config(base), str(base)).to(dtype), dtype
        self.tokenizer = load_tokenizer(base)
        self.counted: dict[Path, _Lengths] = {}

    def expected(self, step: Step, rate: float) -> Expected:
        """Return the seconds at `rate` operations per second, and the peak of resident memory."""
        stage = stage_of(step)
        work, repeats = self._evaluation(step) if stage == "evaluate" else self._work(stage, step)
        names = ("prefill", "decode") if stage == "sample" else None
        flops = repeats * self._flops(work, names) + self._held_out(stage, step)
        if stage == "evaluate":
            flops += repeats * work.rollouts * self._head(work.new_tokens)
        seconds = flops / (rate * REACHED[self.dtype][stage])
        rollout, update = peaks(memory(self.model, work))
        peak = rollout if stage == "sample" else max(rollout, update)
        if stage == "sft":  # the outputs of the frozen layers, in a file that is mapped into memory
            records = self._lengths(Path(flag_of(step, "--data"))).records
            tokens = records * (work.prompt_tokens + work.new_tokens)
            peak += tokens * self.model.hidden_size * work.dtype.itemsize
        if stage == "evaluate":
            peak += EvaluateSettings.cache_tokens / PAGE_SIZE * page_bytes(self.model, torch.float32)
        if stage == "score":
            peak += forward_bytes(self.model, work.tokens_per_microbatch)
        return Expected(START_SECONDS + seconds, START_GB + peak / 1e9)

    def _flops(self, work: Workload, names: Sequence[str] | None = None) -> float:
        """Return the operations of the named phases, of all by default."""
        return sum(phase.flops for phase in phases(self.model, work) if names is None or phase.name in names)

    def _head(self, tokens: int) -> float:
        """Return the operations of the head's product on some tokens."""
        return 2 * self.model.vocab_size * self.model.hidden_size * tokens

    def _held_out(self, stage: str, step: Step) -> float:
        """Return the operations of measuring the held-out data, before and after training."""
        if not (path := flag_of(step, "--eval-data")):
            return 0.0
        data = self._lengths(Path(path))
        if stage == "ppo":
            data = replace(data, response=self._answer_tokens(step.name, Path(path)))
            one = self._flops(self._workload("ppo", 0, 1, data, step), ("prefill", "decode", "scoring"))
        else:
            count = round(data.responses) if stage == "reward" else 1
            one = self._flops(self._workload("reward", 0, count, data, step, count))
            if stage == "sft":  # its loss
                one += self._head(math.ceil(data.response))
        return 2 * data.records * one

    def _work(self, stage: str, step: Step) -> tuple[Workload, float]:
        """Return the workload of an optimizer step, iteration or round of a step, and how many there are."""
        data = self._lengths(Path(flag_of(step, "--data")))

        def given(name: str) -> float:
            return float(flag_of(step, name))

        if stage in ("ppo", "sample"):
            data = replace(data, response=self._answer_tokens(step.name, Path(flag_of(step, "--data"))))
        if stage == "ppo":
            batch = int(given("--batch-size"))
            return self._workload("ppo", int(given("--top-layers")), batch, data, step), given("--max-steps")
        if stage == "sample":
            count = int(given("--num-responses"))
            work = self._workload("ppo", 0, SampleSettings.slots, data, step, samples=count)
            return replace(work, rewards=0), data.records * count / SampleSettings.slots
        if stage == "score":  # a forward of as many prompts with their responses as fit
            count = round(data.responses)
            prompts = max(1, int(ScoreSettings.tokens_per_microbatch / (data.prompt + count * data.response)))
            work = self._workload("reward", 0, prompts * count, data, step, samples=count)
            return replace(work, tokens_per_microbatch=ScoreSettings.tokens_per_microbatch), data.records / prompts
        count = round(data.responses) if stage == "reward" else 1
        work = self._workload(stage, int(given("--top-layers")), int(given("--batch-size")) * count, data, step, count)
        return work, math.ceil(data.records * given("--epochs") / given("--batch-size"))

    def _evaluation(self, step: Step) -> tuple[Workload, float]:
        """Return the workload of a mean question, whose options are its responses, and the number of questions."""
        path = Path(flag_of(step, "--data-dir"))
        if path not in self.counted:
            rows = [row for file in path.glob("*/*.json") for row in json.loads(file.read_text(encoding="utf-8"))]
            asked = [pair for row in rows for pair in _questions(row)]
            prompts = [self._tokens(question) for question, _ in asked]
            options = [self._tokens(option) for _, given in asked for option in given]
            each = len(options) / len(asked)
            self.counted[path] = _Lengths(len(asked), each, sum(prompts) / len(asked), sum(options) / len(options))
        data = self.counted[path]
        work = self._workload("reward", 0, round(data.responses), data, step, round(data.responses))
        return replace(work, dtype=torch.float32), data.records

    def _workload(self, stage: str, top: int, sequences: int, data: _Lengths, step: Step, samples: int = 1) -> Workload:
        prompt, response = math.ceil(data.prompt), math.ceil(data.response)
        epochs = int(flag_of(step, "--ppo-epochs", "1"))
        samples = int(flag_of(step, "--samples-per-prompt", str(samples)))
        minibatch = int(flag_of(step, "--minibatch-size", "0")) or None
        rows = (minibatch or sequences) * (prompt / samples + response)  # responses share the rows of their prompt
        tokens = min(BatchSettings.tokens_per_microbatch, math.ceil(rows))
        critic = flag_of(step, "--advantage", "gae") == "gae"
        rewards = 0 if is_function_name(flag_of(step, "--reward")) else 1
        return Workload(
            stage, self.dtype, 1, 0, False, top, sequences, min(sequences, 256), prompt, response, tokens,
            shared_trunk=False, separate_critic=False, reward_offload=False, trunk_cache_gb=16.0, ppo_epochs=epochs,
            samples=samples, value_head=critic, rewards=rewards, minibatch=minibatch,
        )  # fmt: skip

    def _lengths(self, path: Path) -> _Lengths:
        if path not in self.counted:
            try:
                rows = [row for _, row in read_records(path)]
            except UserError:
                return self._unwritten(path)
            prompts, responses = [], []
            for row in islice(rows, READ_RECORDS):
                prompts.append(self._tokens(f"{row['instruction']}\n{row['input']}\n"))
                responses.append([1 + self._tokens(text) for text in row.get("responses") or [row.get("output", "")]])
            flat = [count for counts in responses for count in counts]
            self.counted[path] = _Lengths(
                len(rows), len(flat) / len(responses), sum(prompts) / len(prompts), sum(flat) / len(flat)
            )
        return self.counted[path]

    def _unwritten(self, path: Path) -> _Lengths:
        """Return what a file will hold that a step is yet to write: rankings, or answers to held-out prompts."""
        data = path.parent if path.parent.name == "data" else path.parent.parent / "data"
        if path.parent == data:
            file = data / "ranking_prompts.jsonl"
            prompts, response = self._lengths(file), self._answer_tokens("sft", file)
            return _Lengths(round(RANKED * prompts.records), DIFFERENT, prompts.prompt, response)
        name, kind, _ = path.name.split(".")
        file = data / f"{HELDOUT[kind]}.jsonl"
        prompts, response = self._lengths(file), self._answer_tokens(name, file)
        return _Lengths(prompts.records, BEST_OF if name == "sft" else SAMPLES, prompts.prompt, response)

    def _answer_tokens(self, step: str, prompts: Path) -> float:
        """Return the length of the answers to a file of prompts that the model of a step writes, or that its RLOO does.

        The base model does not end its own. SFT's are as long as those learned, and noise leaves them so. A policy
        rewarded for right answers writes those alone after a few iterations.
        """
        model = step.split(".")[0]
        if model == "base":
            return NEW_TOKENS
        rewarded = model.startswith("rlhf_") or model == "check"
        return self._lengths(prompts if rewarded else prompts.with_name("sft.jsonl")).response

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])
