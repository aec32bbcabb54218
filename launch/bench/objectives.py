"""Compare objectives on one SFT model: `python launch/bench/objectives.py --model DIR --reward DIR --second DIR ...`.

PPO, RLOO and GRPO get the same prompts, reward and number of responses, DPO the rankings that the reward was trained
on, and best-of-K is the SFT model's best sample by that reward. All are measured on held-out prompts, also by a second
reward model, which none of them optimises. The control, `noise`, is PPO with a reward that says nothing, once; `int8`
is PPO on a trunk of 8 bits. Stop it at any time; the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from engine.base.atomic import write_text
from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.base.records import read_instructions, read_records
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.settings import check_at_least, flag
from launch.real.measures import Interval, best_by, measure, read_answers
from launch.real.stages import NOISE
from launch.real.step import Step, run

KL = "kl"
SCORES = ("a", "b")  # by the reward that is optimised, and by the second one
TITLES = {
    "score a": "score, optimised",
    "score b": "score, second",
    "right": "right answers, %",
    KL: "KL, nats per answer",
    "length": "characters",
}


@dataclass(frozen=True)
class ObjectivesSettings:
    """The model, the rewards, the data, and how much each method gets."""

    _argument_group_name = "objectives"
    model: str = flag("directory of the SFT model")
    reward: str = flag("directory of the reward model that is optimised")
    second: str = flag("directory of a reward model trained on other rankings")
    data: str = flag("prompts of PPO, RLOO and GRPO")
    rankings: str = flag("rankings of DPO: those that the first reward model was trained on")
    eval_data: str = flag("held-out prompts with their right answers")
    output: str = flag("folder of the runs and of objectives.md")
    lang: str = flag("language code: ru, zh, ne, ... (26 languages and en)", "ne")
    seeds: str = flag("seeds of each method, separated by commas", "0,1,2")
    methods: str = flag("methods to train, separated by commas", "ppo,rloo,grpo,dpo,noise")
    iterations: int = flag("iterations of PPO, RLOO and GRPO", 40)
    rollouts: int = flag("responses per iteration", 256)
    minibatch_size: int = flag("responses per update", 128)
    ppo_epochs: int = flag("times that each response is used", 1)
    samples: int = flag("responses to a prompt in RLOO and GRPO, and K of best-of-K", 8)
    lr: float = flag("learning rate of PPO, RLOO and GRPO", 3e-5)
    dpo_lr: float = flag("learning rate of DPO", 1e-5)
    kl_coef: float = flag("weight of the KL penalty", 0.05)
    top_layers: int = flag("trained layers from the top", 4)
    max_new_tokens: int = flag("longest response in tokens", 48)
    max_length: int = flag("longest sequence in tokens", 256)
    template: str = flag("prompt template of the models", "plain")
    dtype: str = flag("float32 or bfloat16", "bfloat16", choices=["float32", "bfloat16"])

    def __post_init__(self) -> None:
        check_at_least(1, self, "iterations", "rollouts", "minibatch_size", "ppo_epochs", "max_new_tokens")
        check_at_least(2, self, "samples")
        for name in self.methods.split(","):
            if name not in METHODS:
                raise UserError(f"--methods has {name!r}: give some of {', '.join(METHODS)}, separated by commas")
        if not all(seed.isdecimal() for seed in self.seeds.split(",")):
            raise UserError(f"--seeds is {self.seeds!r}: give numbers separated by commas, such as 0,1,2")


def ppo_flags(s: ObjectivesSettings, *own: object, reward: str = "") -> tuple[object, ...]:
    """Return the flags of launch/ppo.py: the same for each estimator, and its `own`."""
    return (
        "launch/ppo.py", "--reward", reward or s.reward, "--data", s.data,
        "--max-steps", s.iterations, "--epochs", 1_000, "--batch-size", s.rollouts,
        "--minibatch-size", s.minibatch_size, "--ppo-epochs", s.ppo_epochs,
        "--lr", s.lr, "--schedule", "constant", "--warmup-steps", 2, "--max-new-tokens", s.max_new_tokens,
        "--slots", s.rollouts, "--kl-controller", "fixed", "--kl-coef", s.kl_coef, "--missing-eos-penalty", 1, *own,
    )  # fmt: skip


METHODS = {
    "ppo": lambda s: ppo_flags(s),
    "rloo": lambda s: ppo_flags(s, "--advantage", "rloo", "--samples-per-prompt", s.samples),
    "grpo": lambda s: ppo_flags(s, "--advantage", "grpo", "--samples-per-prompt", s.samples),
    "noise": lambda s: ppo_flags(s, reward=NOISE),
    "int8": lambda s: ppo_flags(s, "--trunk-dtype", "int8"),
    "dpo": lambda s: (
        "launch/dpo.py", "--data", s.rankings, "--batch-size", 32, "--epochs", 1, "--lr", s.dpo_lr, "--heldout", 0,
    ),
}  # fmt: skip


def runs_of(s: ObjectivesSettings, method: str) -> dict[str, str]:
    """Return {name of the run: seed}: one for each seed, and one of the control."""
    seeds = s.seeds.split(",")[: 1 if method == "noise" else None]
    return {f"{method}_{seed}": seed for seed in seeds}


def steps(s: ObjectivesSettings) -> Iterator[Step]:
    """Yield the training of each method and seed, then the answers of every model and their scores."""
    folder = Path(s.output)
    common = ("--template", s.template, "--dtype", s.dtype, "--max-length", s.max_length)
    models = {"sft": Path(s.model)}
    for method in s.methods.split(","):
        for name, seed in runs_of(s, method).items():
            models[name] = folder / name / "model"
            own = ("--lang", s.lang, "--model", s.model, "--output", folder / name, "--seed", seed)
            top = ("--top-layers", s.top_layers, "--truncate", "drop", "--save-every", 20)
            argv = (*METHODS[method](s), *own, *common, *top)
            yield Step(name, tuple(map(str, argv)), folder / name / "result.json", resume=folder / name)
    for name, model in models.items():
        answers = folder / f"{name}.jsonl"
        argv = (
            "launch/sample.py", "--lang", s.lang, "--model", model, "--data", s.eval_data, "--output", answers,
            "--seed", 1, "--num-responses", s.samples, "--max-new-tokens", s.max_new_tokens, *common,
            "--truncate", "drop",
        )  # fmt: skip
        yield Step(f"{name} answers", tuple(map(str, argv)), answers)
        for score, reward in zip((*SCORES, KL), (s.reward, s.second, model)):
            output = folder / f"{name}.{score}.jsonl"
            reference = ("--reference", s.model) if score == KL else ()
            argv = ("launch/score.py", "--reward", reward, "--data", answers, "--output", output, *common, *reference)
            yield Step(f"{name} {score}", tuple(map(str, argv)), output)


def values_of(s: ObjectivesSettings, name: str) -> dict[str, np.ndarray]:
    """Return the measures of a model's answers, float64 [P] each."""
    folder, expected = Path(s.output), {r.id: r.output for r in read_instructions(s.eval_data)}
    scores = {score: read_answers(folder / f"{name}.{score}.jsonl") for score in (*SCORES, KL)}
    values = measure(read_answers(folder / f"{name}.jsonl"), scores, expected, get_language(s.lang), len)
    return {**values, KL: values.pop(f"score {KL}")}


def best_values(s: ObjectivesSettings) -> dict[str, np.ndarray]:
    """Return the measures of the SFT model's best samples; KL: log K - (K - 1) / K, a bound (Beirami et al. 2024)."""
    folder, expected = Path(s.output), {r.id: r.output for r in read_instructions(s.eval_data)}
    best = best_by({score: read_answers(folder / f"sft.{score}.jsonl") for score in SCORES}, SCORES[0])
    values = measure(best[SCORES[0]], best, expected, get_language(s.lang), len)
    bound = np.log(s.samples) - (s.samples - 1) / s.samples
    return {**values, KL: np.full(len(values["right"]), bound)}


def table(s: ObjectivesSettings) -> Iterator[str]:
    """Yield the page: each method's mean over its seeds with a 95 % interval over prompts; right answers by seed."""
    costs: dict[str, list[tuple[float, float]]] = {}
    for _, row in read_records(Path(s.output) / "steps.jsonl"):
        costs.setdefault(row["step"], []).append((row["seconds"], row["peak_gb"]))
    yield f"# Objectives on {s.model}"
    yield ""
    yield "Means over held-out prompts and seeds ± half of the 95 % bootstrap interval over prompts."
    yield ""
    yield f"| method | {' | '.join(TITLES.values())} | right, each seed | seconds | peak GB |"
    yield f"|---|{'---|' * (len(TITLES) + 3)}"
    for method in ("sft", *s.methods.split(","), f"best of {s.samples}"):
        trained = method in METHODS
        names = list(runs_of(s, method)) if trained else [method]
        each = [values_of(s, n) if trained or n == "sft" else best_values(s) for n in names]
        cells = [shown(name, np.mean([values[name] for values in each], axis=0)) for name in TITLES]
        cells.append(", ".join(f"{100 * values['right'].mean():.1f}" for values in each))
        parts = [part for name in names for part in costs.get(name, [])]
        cells.append(f"{sum(seconds for seconds, _ in parts) / len(names):.0f}" if parts else "")
        cells.append(f"{max(peak for _, peak in parts):.1f}" if parts else "")
        yield f"| {method} | {' | '.join(cells)} |"


def shown(name: str, value_P: np.ndarray) -> str:
    """Format the mean and half of its interval; shares as percentages."""
    x, factor = Interval.of(value_P), 100 if name == "right" else 1
    return f"{factor * x.mean:.{1 if factor == 100 else 2}f} ± {factor * x.half:.{1 if factor == 100 else 2}f}"


def job(argv: Sequence[str]) -> None:
    """Run the steps that are left, then write and print the table."""
    (s,) = parse_settings((ObjectivesSettings,), argv, "python launch/bench/objectives.py", __doc__.split("\n")[0])
    get_language(s.lang)
    console, folder, todo = Console(), Path(s.output), list(steps(s))
    folder.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(todo, start=1):
        if not step.is_done():
            console.say(f"\n[{number}/{len(todo)}] {step.name}: {' '.join(step.argv)}\n")
            run(step, folder / "steps.jsonl")
    page = folder / "objectives.md"
    write_text(page, "\n".join(table(s)) + "\n")
    console.say(f"\n{page.read_text(encoding='utf-8')}\n\n  table: {page}")


if __name__ == "__main__":
    main(job)
