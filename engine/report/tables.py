"""The tables of a report: results, answers before and after, evaluations, times, settings, machines."""

from __future__ import annotations

import statistics
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.base.languages import LANGUAGES
from engine.report.curves import experiments
from engine.report.markup import Markup, join, tag
from engine.report.reading import OF_TEXTS, RunFolder, Stage
from engine.run.kept import in_words
from engine.text.templates import TEMPLATES

MOST_ANSWERS = 20
# (title, stage, field of the start, field of the end, whether it is a share)
_REACHED = (
    ("pretraining loss, nats per token", "pretrain", "loss_first", "loss_last", False),
    ("SFT loss, nats per token", "sft", "loss_first", "loss_last", False),
    ("SFT loss on held-out data", "sft", "heldout_loss_before", "heldout_loss", False),
    ("reward model, loss on held-out data", "reward", "heldout_loss_before", "heldout_loss", False),
    ("reward model, pairs ordered rightly", "reward", "accuracy_before", "accuracy", True),
    ("DPO loss on held-out data", "dpo", "heldout_loss_before", "heldout_loss", False),
    ("DPO, held-out pairs ordered rightly by the implicit reward", "dpo", "accuracy_before", "accuracy", True),
    ("DPO, better answer likelier in held-out pairs", "dpo", "likelier_before", "likelier", True),
    ("PPO score", "ppo", "score_first", "score_last", False),
    ("PPO KL to the reference, nats per response", "ppo", "kl_first", "kl_last", False),
    ("right answers on held-out prompts, sampled", "ppo", "exact_match_before", "exact_match", True),
    ("answers in a wrong language on held-out prompts", "ppo", "wrong_language_before", "wrong_language", True),
)
# Phases of a stage: title -> seconds per step.
_PHASES: dict[str, Callable[[Mapping[str, float]], float]] = {
    "generation": lambda row: row["time/generation_s"],
    "scoring": lambda row: row.get("time/scoring_s", 0.0),
    "log-probabilities, values, advantages": lambda row: (
        row["time/collect_s"] - row["time/generation_s"] - row.get("time/scoring_s", 0.0)
    ),
    "updates": lambda row: row["time/update_s"],
}
_TIMES = ("time/collect_s", "time/generation_s", "time/update_s")


def table(head: Sequence[object], rows: Sequence[Sequence[object]], numbers: int = 0) -> Markup:
    """Return a table; its last `numbers` columns are numbers, the first column is the row header."""

    def cells(name: str, row: Sequence[object]) -> list[Markup]:
        kinds = ["number" if i >= len(row) - numbers else None for i in range(len(row))]
        return [tag("th" if i == 0 else name, cell, class_=kind) for i, (cell, kind) in enumerate(zip(row, kinds))]

    body = tag("tbody", *(tag("tr", *cells("td", row)) for row in rows))
    return tag("div", tag("table", tag("thead", tag("tr", *cells("th", head))), body), class_="scroll")


def reached(runs: Sequence[RunFolder]) -> Markup | None:
    """Table of first and last numbers of every finished stage, one column per run, and the mean over seeds."""
    named = [(label, [run]) for label, members in experiments(runs) for run in members for label in (run.name,)]
    means = [(f"mean of {len(m)} seeds", m) for _, m in experiments(runs) if len(m) > 1]
    rows = []
    for title, stage, first, last, is_share in (*_REACHED, *_texts(runs)):
        cells = [_first_last(members, stage, first, last, is_share) for _, members in [*named, *means]]
        if any(cells):
            rows.append([title, *(cell or "–" for cell in cells)])
    return (
        table(["first → last", *(label for label, _ in [*named, *means])], rows, len(named + means)) if rows else None
    )


def _texts(runs: Sequence[RunFolder]) -> list[tuple[str, str, str, str, bool]]:
    """Return rows for the held-out texts of pretraining, such as one in the language and one in another."""
    results = [run.stages["pretrain"].result or {} for run in runs if "pretrain" in run.stages]
    fields = dict.fromkeys(name for r in results for name in r if name.startswith(OF_TEXTS) and f"{name}_before" in r)
    return [
        (f"pretraining, {field.partition('/')[0].replace('_', ' ')} of {field.partition('/')[2]}", "pretrain",
         f"{field}_before", field, False)
        for field in fields
    ]  # fmt: skip


def _first_last(runs: Sequence[RunFolder], stage: str, first: str, last: str, is_share: bool) -> str:
    results = [run.stages[stage].result or {} for run in runs if stage in run.stages]

    def show(field: str) -> str:
        values = [result[field] for result in results if result.get(field) is not None]
        if not values:
            return ""
        mean = statistics.fmean(values)
        spread = f" ± {_number(statistics.stdev(values), is_share)}" if len(values) > 1 else ""
        if len(values) == 1 and (half := _half(results, field)) is not None:
            spread = f" ± {_number(half, is_share)}"
        return _number(mean, is_share) + spread

    before, after = show(first), show(last)
    return f"{before} → {after}" if before and after else after


def _half(results: Sequence[Mapping[str, Any]], field: str) -> float | None:
    """Return half of the 95 % interval of the field of the only result that has it; None where it has none."""
    (result,) = (result for result in results if result.get(field) is not None)
    when = "_before" if field.endswith("_before") else ""
    return result.get(f"half_intervals{when}", {}).get(field.removesuffix("_before"))


def kept(runs: Sequence[RunFolder]) -> Markup | None:
    """List which step --keep-best has exported, and why --stop-kl ended a run."""
    lines = []
    for run in runs:
        for name, stage in run.stages.items():
            result = stage.result or {}
            found = [in_words(result["kept"])] if "kept" in result else []
            found += [str(result["stopped"])] if "stopped" in result else []
            lines += [f"{run.name}/{name}: {line}" if len(runs) > 1 else f"{name}: {line}" for line in found]
    return tag("ul", *(tag("li", line) for line in lines)) if lines else None


def _number(value: float, is_share: bool) -> str:
    return f"{value:.1%}" if is_share else f"{value:.3f}"


def answers(run: RunFolder) -> Markup | None:
    """Table of prompts with answers of the SFT and PPO models side by side, or with sampled answers."""
    rows = [row for row in run.stages["ppo"].samples if "before_ppo" in row] if "ppo" in run.stages else []
    if rows:
        columns = (("SFT", "before_ppo"), ("PPO", "response"), ("the record's own", "expected"))
        return _answer_table(run, run.stages["ppo"], rows[-MOST_ANSWERS:], columns)
    name = "ppo" if "ppo" in run.stages else "sft"
    if name not in run.stages or not run.stages[name].samples:
        return None
    columns = (("answer", "response"), ("the record's own", "expected"), ("score", "score"))
    return _answer_table(run, run.stages[name], run.stages[name].samples[-MOST_ANSWERS:], columns)


def _answer_table(
    run: RunFolder, stage: Stage, rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]
) -> Markup:
    columns = [(label, field) for label, field in columns if any(row.get(field) not in (None, "") for row in rows)]

    def cell(label: str, value: object, mark: object = "") -> Markup:
        shown = f"{value:.3f}" if isinstance(value, float) else value
        return tag("td", tag("div", shown, class_="words", dir="auto", lang=run.lang), mark, data_label=label)

    body = []
    for row in rows:
        cells = [cell("prompt", asked(row["prompt"], stage.template))]
        for label, field in columns:
            given = row.get(field, "")
            right = field in ("response", "before_ppo") and row.get("expected") and _same(given, row["expected"])
            cells.append(cell(label, given, tag("span", "✓ as expected", class_="right") if right else ""))
        body.append(tag("tr", *cells))
    head = tag("tr", *(tag("th", label) for label in ("prompt", *(label for label, _ in columns))))
    return tag("table", tag("thead", head), tag("tbody", *body), class_="answers")


def asked(prompt: str, template: str) -> str:
    """Strip the template's text from a prompt, if the template is one of ours."""
    for form in (TEMPLATES[template].with_input, TEMPLATES[template].without_input) if template in TEMPLATES else ():
        before, rest = form.split("{instruction}")
        between, mark, after = rest.partition("{input}")
        if not mark:
            between, after = "", rest
        inner = prompt.removeprefix(before).removesuffix(after)
        if len(prompt) - len(inner) == len(before) + len(after) and (not mark or between in inner):
            return inner.replace(between, "\n", 1) if mark else inner
    return prompt


def _same(answer: str, expected: str) -> bool:
    return unicodedata.normalize("NFC", answer).strip() == unicodedata.normalize("NFC", expected).strip()


def evaluations(runs: Sequence[RunFolder]) -> Markup | None:
    """Table of accuracy by task, group and (folded) subject from an evaluation's results.json."""
    parts = []
    for run in runs:
        for folder, results in run.evaluations.items():
            lines = results.get("results", {})
            members = {m for names in results.get("group_subtasks", {}).values() for m in names}
            whole = [_evaluation_row(results, name) for name in lines if name not in members]
            detail = [_evaluation_row(results, name) for name in lines if name in members]
            head = ["task", "metric", "%", "± standard error", "documents"]
            parts.append(tag("h3", f"{run.name}/{folder}"))
            parts.append(table(head, [row for rows in whole for row in rows], 3))
            if detail:
                inner = table(head, [row for rows in detail for row in rows], 3)
                parts.append(tag("details", tag("summary", f"{len(detail)} subjects"), inner))
    return join(*parts) if parts else None


def _evaluation_row(results: Mapping[str, Any], name: str) -> list[list[str]]:
    entry = results["results"][name]
    count = results.get("n-samples", {}).get(name, {}).get("effective")
    rows = []
    for key, value in entry.items():
        metric = key.removesuffix(",none")
        if metric == key or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = entry.get(f"{metric}_stderr,none")
        shown = f"{100 * error:.1f}" if isinstance(error, int | float) else "–"
        rows.append([name if not rows else "", metric, f"{100 * value:.1f}", shown, f"{count:,}" if count else "–"])
    return rows


def times(runs: Sequence[RunFolder]) -> Markup:
    """Table of seconds by stage and PPO phase, with bars."""
    rows = []
    for run in runs:
        for name, stage in run.stages.items():
            if stage.result is not None:
                rows.append((run, name, "whole stage", stage.result["seconds"]))
            elif stage.metrics:
                rows.append(
                    (run, name, f"not finished: stopped or at work after step {stage.metrics[-1]['step']}", None)
                )
            timed = [row for row in stage.metrics if all(name in row for name in _TIMES)]
            if timed:
                rows += [(run, name, title, sum(map(of_row, timed))) for title, of_row in _PHASES.items()]
    most = max((seconds for *_, seconds in rows if seconds), default=1.0)
    cells = [
        [
            f"{run.name}/{name}" if len(runs) > 1 else name,
            phase,
            "" if seconds is None else tag("span", class_="bar", style=f"width: {100 * seconds / most:.1f}%"),
            "–" if seconds is None else f"{seconds:,.1f}",
        ]
        for run, name, phase, seconds in rows
    ]
    return table(["stage", "phase", "", "seconds"], cells, 1)


def settings(runs: Sequence[RunFolder]) -> Markup:
    """Table of all settings by stage, one column per run; differing settings first."""
    parts = []
    for stage in dict.fromkeys(name for run in runs for name in run.stages):
        with_it = [run for run in runs if stage in run.stages]
        names = dict.fromkeys(name for run in with_it for name in run.stages[stage].settings)
        rows = [[name, *(_value(run.stages[stage].settings.get(name)) for run in with_it)] for name in names]
        rows.sort(key=lambda row: len(set(row[1:])) == 1)
        inner = table(["setting", *(run.name for run in with_it)], rows)
        parts.append(tag("details", tag("summary", f"{stage}: {len(rows)} settings"), inner))
    return join(*parts)


def machines(runs: Sequence[RunFolder]) -> Markup:
    """Table of versions, commit and hardware of each run's last stage."""
    columns = []
    for run in runs:
        config = list(run.stages.values())[-1].config
        about = {"commit": config.get("commit"), "system": config.get("machine"), **config.get("hardware", {})}
        columns.append(about | config.get("versions", {}))
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name.replace("_", " "), *(_value(column.get(name)) for column in columns)] for name in names]
    return table(["", *(run.name for run in runs)], rows)


def language_of(run: RunFolder) -> str:
    """Return the English name of a run's language, or its code if it is not registered."""
    return LANGUAGES[run.lang].name if run.lang in LANGUAGES else run.lang


def _value(value: object) -> str:
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
