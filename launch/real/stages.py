"""The steps of a real run as commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from engine.reward_functions import exact_match, noise
from launch.real import rank
from launch.real.step import Step, stage_of

NOISE, CHECK = (f"{reward.__module__}:{reward.__name__}" for reward in (noise, exact_match))
NORMALISED = ("--score-norm", "rollouts")  # the check's scores, which have a smaller deviation than a reward model's
REWARDS = ("a", "b")  # RLHF optimises a; b is trained on the other half of the rankings
BEST_OF = 8
SAMPLES = 4
RANKED_SAMPLES = 6
NEW_TOKENS = 48  # of an answer at most
TASKS = "arc,truthfulqa,mmlu"
HELDOUT = {"tasks": "heldout_tasks", "questions": "heldout_questions"}


def _flags(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TEXT = _flags("--template plain --truncate drop")
SFT = _flags("--batch-size 32 --epochs 2 --lr 5e-5 --warmup-steps 10 --top-layers 12 --save-every 100")
REWARD = _flags("--batch-size 32 --epochs 1 --lr 1e-4 --warmup-steps 6 --top-layers 12 --save-every 50")
RLHF = _flags(
    "--advantage rloo --samples-per-prompt 8 --batch-size 256 --minibatch-size 128 --ppo-epochs 1 --max-steps 20 "
    f"--lr 1e-5 --schedule constant --warmup-steps 2 --top-layers 4 --max-new-tokens {NEW_TOKENS} --slots 256 "
    "--kl-controller fixed --kl-coef 0.05 --missing-eos-penalty 1 --save-every 10"
)
TRAINED_LENGTH = _flags("--max-length 256")
SAMPLE = (*TEXT, *_flags(f"--max-length 304 --max-new-tokens {NEW_TOKENS}"))


def steps(lang: str, folder: Path, base: Path, seeds: Sequence[int], dtype: str) -> Iterator[Step]:
    """Yield the steps of a language in order; the data are already in folder/data.

    `dtype` is that of training, sampling and scoring. Evaluation computes in float32.
    """
    for step in _steps(lang, folder, base, seeds):
        computes = step.argv[0].startswith("launch/") and stage_of(step) != "evaluate"
        yield replace(step, argv=(*step.argv, "--dtype", dtype)) if computes else step


def _steps(lang: str, folder: Path, base: Path, seeds: Sequence[int]) -> Iterator[Step]:
    data = folder / "data"
    sft, rewards = folder / "sft" / "model", {name: folder / f"reward_{name}" for name in REWARDS}
    tasks = ("--eval-data", data / "heldout_tasks.jsonl")
    yield _train("sft", lang, base, data / "sft.jsonl", folder / "sft", *SFT, *tasks)
    samples = data / rank.SAMPLES
    yield _sample("ranking samples", lang, sft, data / "ranking_prompts.jsonl", samples, RANKED_SAMPLES, 0)
    yield Step("rankings", ("-m", rank.__name__, str(data)), data / "ranking_b.jsonl")
    for name, output in rewards.items():
        heldout = ("--eval-data", data / "ranking_heldout.jsonl")
        yield _train("reward", lang, sft, data / f"ranking_{name}.jsonl", output, *REWARD, *heldout)
    runs = {f"rlhf_{seed}": (seed, rewards["a"] / "model") for seed in seeds}
    runs |= {"control": (seeds[0], NOISE), "check": (seeds[0], CHECK, *NORMALISED)}
    for name, (seed, *reward) in runs.items():
        flags = (*RLHF, *tasks, "--seed", seed, "--reward", *reward)
        yield _train("ppo", lang, sft, data / "rl.jsonl", folder / name, *flags)
    models = {"base": base, "sft": sft} | {name: folder / name / "model" for name in runs}
    for name, model in models.items():
        yield from _answers(lang, name, model, data, folder / "answers", rewards)
    if (data / "benchmarks").is_dir():
        evaluations = {name: folder / "evaluate" / name for name in ("base", "sft", f"rlhf_{seeds[0]}")}
        for name, output in evaluations.items():
            yield _evaluate(lang, models[name], data / "benchmarks", output)
        named = (f"{name}={path}" for name, path in evaluations.items())
        report = folder / "evaluate" / "report"
        argv = ("-m", "evaluation", "report", *named, "--output", str(report))
        yield Step("evaluation report", argv, report / "report.md")


def _train(stage: str, lang: str, model: Path, data: Path, output: Path, *flags: object) -> Step:
    own = ("--lang", lang, "--model", model, "--data", data, "--output", output)
    argv = (f"launch/{stage}.py", *own, *TEXT, *TRAINED_LENGTH, *flags)
    return Step(output.name, tuple(map(str, argv)), output / "result.json", resume=output)


def _answers(lang: str, name: str, model: Path, data: Path, folder: Path, rewards: dict[str, Path]) -> Iterator[Step]:
    """Yield the sampling of answers to held-out prompts, and their scores by each reward model."""
    for kind, prompts in HELDOUT.items():
        if not (data / f"{prompts}.jsonl").is_file():
            continue
        output, count = folder / f"{name}.{kind}.jsonl", BEST_OF if name == "sft" else SAMPLES
        yield _sample(output.stem, lang, model, data / f"{prompts}.jsonl", output, count, 1)
        for reward, path in rewards.items():
            scored = folder / f"{name}.{kind}.{reward}.jsonl"
            argv = ("launch/score.py", "--reward", path / "model", "--data", output, "--output", scored)
            yield Step(scored.stem, tuple(map(str, argv)), scored)


def _sample(name: str, lang: str, model: Path, prompts: Path, output: Path, count: int, seed: int) -> Step:
    argv = ("launch/sample.py", "--lang", lang, "--model", model, "--data", prompts, "--output", output,
            "--num-responses", count, "--seed", seed, *SAMPLE)  # fmt: skip
    return Step(name, tuple(map(str, argv)), output)


def _evaluate(lang: str, model: Path, data: Path, output: Path) -> Step:
    argv = ("launch/evaluate.py", "--lang", lang, "--model", model, "--tasks", TASKS, "--data-dir", data, "--shots", 0,
            "--bad-records", "skip", "--output", output)  # fmt: skip
    return Step(f"evaluate_{output.name}", tuple(map(str, argv)), output / "results.json")
