"""The report of a real run: base, SFT, RLHF, control and best of 8, each measure with its interval, and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.base.atomic import write_text
from engine.base.languages import get_language
from engine.base.records import read_instructions, read_records
from engine.models import load_config
from engine.run.folder import read_result
from engine.text.tokenizer import load_tokenizer
from launch.real.forecast import FORECAST, read_forecast
from launch.real.measures import Interval, best_by, measure, prefers_right, read_answers, rows_by_id
from launch.real.stages import BEST_OF, HELDOUT, REWARDS

Values = Mapping[str, np.ndarray]  # measure -> float64 [P], a number per prompt
BEST = f"best of {BEST_OF}"
TITLES = {
    "right": "right answers, %",
    "right, more": "right, then more text, %",
    "score a": "score by reward model A (optimised)",
    "score b": "score by reward model B (other rankings)",
    "language": "in the language, %",
    "ended": "ended, %",
    "length": "tokens per answer",
}
PERCENT = ("right", "right, more", "language", "ended")
SHOWN_PROMPTS = 4


def write_report(lang: str, folder: Path, base: Path, seeds: Sequence[int]) -> Path:
    """Write folder/report.md from the files of the run, and return its path."""
    language, tokenizer = get_language(lang), load_tokenizer(base)
    names = ["base", "sft", *(f"rlhf_{seed}" for seed in seeds), "control", "check"]

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    family = load_config(base).model_type
    lines = [f"# {language.name}: base, SFT and RLHF of {family}", ""]
    lines += ["Means over prompts ± half of the 95 % bootstrap interval.", ""]
    for kind, title in (("tasks", "Held-out checkable tasks"), ("questions", "Held-out questions (ARC validation)")):
        prompts = folder / "data" / f"{HELDOUT[kind]}.jsonl"
        if not prompts.is_file():
            continue
        expected = {record.id: record.output for record in read_instructions(prompts)}
        values = {n: _measured(folder, n, kind, expected, language, length) for n in names}
        values[BEST] = _best_values(folder, kind, expected, language, length)
        lines += [f"## {title}", "", *_table(values), "", "Paired differences to SFT:", "", *_differences(values), ""]
        lines += [*_verdict(values, names[2]), ""]
    lines += [*_evaluations(folder), *_rewards(folder), *_kl(folder, names), *_answers(folder, names)]
    lines += _steps(folder)
    page = folder / "report.md"
    write_text(page, "\n".join(lines).rstrip() + "\n")
    return page


def _measured(folder: Path, name: str, kind: str, expected: Mapping[str, str], language, length: Callable) -> Values:
    scores = {f"{r}": read_answers(folder / "answers" / f"{name}.{kind}.{r}.jsonl") for r in REWARDS}
    return measure(read_answers(folder / "answers" / f"{name}.{kind}.jsonl"), scores, expected, language, length)


def _best_values(folder: Path, kind: str, expected: Mapping[str, str], language, length: Callable) -> Values:
    """Measure SFT's best answers by reward model A; B's scores are those of the same answers."""
    best = best_by({name: read_answers(folder / "answers" / f"sft.{kind}.{name}.jsonl") for name in REWARDS}, "a")
    return measure(best["a"], best, expected, language, length)


def _table(values: Mapping[str, Values]) -> Iterator[str]:
    yield f"| measure | {' | '.join(values)} |"
    yield f"|---|{'---|' * len(values)}"
    for name, title in TITLES.items():
        yield f"| {title} | {' | '.join(_shown(name, Interval.of(v[name])) for v in values.values())} |"


def _differences(values: Mapping[str, Values]) -> Iterator[str]:
    others = [name for name in values if name not in ("base", "sft")]
    yield f"| measure | {' | '.join(others)} |"
    yield f"|---|{'---|' * len(others)}"
    for name, title in TITLES.items():
        cells = (_shown(name, Interval.of(values[other][name] - values["sft"][name]), "+") for other in others)
        yield f"| {title} | {' | '.join(cells)} |"


def _verdict(values: Mapping[str, Values], rlhf: str) -> Iterator[str]:
    """Say whether RLHF is above SFT, and the control is not, by more than both half intervals."""
    for name in ("right", "score b"):
        sft = Interval.of(values["sft"][name])
        answers = ("yes" if Interval.of(values[other][name]).beats(sft) else "no" for other in (rlhf, "control"))
        yield "- {}: above SFT by more than both intervals: RLHF {}, control {}".format(TITLES[name], *answers)


def _shown(name: str, x: Interval, sign: str = "") -> str:
    """Format 0.504 ± 0.033 as a percentage for shares."""
    if name in PERCENT:
        return f"{100 * x.mean:{sign}.1f} ± {100 * x.half:.1f}"
    return f"{x.mean:{sign}.2f} ± {x.half:.2f}"


def _evaluations(folder: Path) -> Iterator[str]:
    """Yield the evaluation's own report, its headings a level lower."""
    path = folder / "evaluate" / "report" / "report.md"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield f"#{line}" if line.startswith("#") else line
        yield ""


def _rewards(folder: Path) -> Iterator[str]:
    yield from ("## Reward models", "")
    yield "| model | held-out pairs in order, % | right above wrong of SFT's samples for one task, % | tasks |"
    yield "|---|---|---|---|"
    expected = {r.id: r.output for r in read_instructions(folder / "data" / f"{HELDOUT['tasks']}.jsonl")}
    for name in REWARDS:
        result, samples = read_result(folder / f"reward_{name}"), folder / "answers" / f"sft.tasks.{name}.jsonl"
        if result is not None and samples.is_file():
            shares = prefers_right(read_answers(samples), expected)
            share = _shown("right", Interval.of(shares)) if len(shares) else ""  # no task with a right and a wrong one
            cells = (f"{100 * result['accuracy']:.1f}", share, str(len(shares)))
            yield f"| {name.upper()} | {' | '.join(cells)} |"
    yield ""


def _kl(folder: Path, names: Sequence[str]) -> Iterator[str]:
    yield from ("## RLHF", "", "| run | KL, nats per response | score, first -> last | seconds |", "|---|---|---|---|")
    for name in names[2:]:
        if (result := read_result(folder / name)) is not None:
            scores = f"{result['score_first']:.3f} -> {result['score_last']:.3f}"
            yield f"| {name} | {result['kl_last']:.2f} | {scores} | {result['seconds']:.0f} |"
    yield ""


def _answers(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the first answers of each model to some held-out prompts, side by side."""
    shown = [*names[:3], "control"]
    yield from ("## Answers, side by side", "")
    for kind in HELDOUT:
        files = {name: folder / "answers" / f"{name}.{kind}.jsonl" for name in shown}
        if not all(path.is_file() for path in files.values()):
            continue
        rows = {name: read_answers(path) for name, path in files.items()}
        ids = [row["id"] for row in rows["sft"]][:: max(1, len(rows["sft"]) // SHOWN_PROMPTS)][:SHOWN_PROMPTS]
        for chosen in zip(*(rows_by_id(found, ids) for found in rows.values())):
            yield from (f"**{_line(chosen[0]['instruction'] + ' ' + chosen[0]['input'])}**", "")
            yield from (f"- {name}: {_line(row['responses'][0])}" for name, row in zip(shown, chosen))
            yield ""


def _line(text: str) -> str:
    text = text.strip().replace("\n", " ⏎ ")
    return text if len(text) <= 200 else text[:200] + " …"


def _steps(folder: Path) -> Iterator[str]:
    """Yield seconds and peak memory of each step, beside the forecast."""
    path = folder / "steps.jsonl"
    if not path.is_file():
        return
    seconds: dict[str, float] = {}
    peak: dict[str, float] = {}
    for _, row in read_records(path):
        name = row["step"]
        seconds[name], peak[name] = seconds.get(name, 0.0) + row["seconds"], max(peak.get(name, 0.0), row["peak_gb"])
    forecast = read_forecast(folder / FORECAST)
    yield from ("## Time and memory", "", "| step | seconds | forecast | peak GB | forecast |", "|---|---|---|---|---|")
    for name in seconds:
        expected = forecast.get(name)
        first, second = (f"{expected.seconds:.0f}", f"{expected.peak_gb:.1f}") if expected else ("", "")
        yield f"| {name} | {seconds[name]:.0f} | {first} | {peak[name]:.1f} | {second} |"
    yield ""
