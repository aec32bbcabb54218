"""`python -m evaluation report RUN...`: write the paper's tables for any models, as Markdown, CSV and a picture."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path

from engine.run.folder import check_writable
from evaluation.results.picture import draw
from evaluation.results.power import Power, build_power, documents_needed, rounded, shown
from evaluation.results.runs import Runs, read_runs
from evaluation.results.tables import (
    Comparison,
    Table,
    Value,
    build_common_tables,
    build_comparisons,
    build_tables,
    in_order,
)
from evaluation.results.units import TITLES, scale, unit


def main(arguments: Sequence[str]) -> int:
    """Print the report and write it to the folder --output. Return exit status 0."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation report",
        description="Tables of finished evaluations: a row per language, a column per model, and paired differences.",
        epilog="example: python -m evaluation report base=runs/base RLHF=runs/ne/evaluate --output report",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="DIR or NAME=DIR; one NAME may have several folders")
    parser.add_argument("--output", type=Path, help="folder for report.md, tables.csv, differences.csv, report.png")
    parser.add_argument("--mixed", action="store_true", help="compare runs with other settings or data, and note it")
    options = parser.parse_args(arguments)
    if options.output is not None:
        check_writable(options.output / "report.md")
    runs = read_runs(options.runs, options.mixed)
    tables, common = build_tables(runs), build_common_tables(runs)
    comparisons, notes = build_comparisons(runs)
    text = markdown(runs, tables, common, comparisons, notes)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "report.md").write_text(text, encoding="utf-8")
        _write_tables(options.output / "tables.csv", tables, common)
        _write_differences(options.output / "differences.csv", comparisons)
        draw(options.output / "report.png", tables)
        print(f"{options.output}: report.md, tables.csv, differences.csv, report.png")
    return 0


def markdown(
    runs: Runs,
    tables: Sequence[Table],
    common: Sequence[Table],
    comparisons: Sequence[Comparison],
    notes: Sequence[str],
) -> str:
    """Return the whole report as Markdown."""
    parts = ["# Evaluation", _models(runs)]
    parts += [f"- {note}" for note in [*runs.notes, *notes]]
    for table in tables:
        parts += [f"\n## {_title(table)}\n", _markdown_table(table)]
    if common:
        parts.append("\n## On the items that all languages and models have")
        for table in common:
            parts += [f"\n### {_title(table)}\n", _markdown_table(table)]
    if comparisons:
        parts += ["\n## Paired differences, points of per cent, with 95 % confidence intervals\n"]
        parts += [_comparison_table(comparisons)]
    if rows := build_power(runs):
        parts += ["\n## How many documents show a difference\n", _power_table(rows)]
    return "\n".join(parts) + "\n"


def _models(runs: Runs) -> str:
    """One line per model: its number of results, its languages and its protocols."""
    lines = []
    for name, cells in runs.cells.items():
        protocols = sorted({f"{cell.about['protocol']}" for cell in cells.values()})
        languages = in_order({lang for _, lang in cells})
        lines.append(f"- {name}: {len(cells)} results in {', '.join(languages)}, protocol {', '.join(protocols)}")
    return "\n".join(lines)


def _title(table: Table) -> str:
    return f"{table.task}: {TITLES.get(table.metric, table.metric)}, {unit(table.metric)}"


def _markdown_table(table: Table) -> str:
    lines = ["| language | " + " | ".join(table.columns) + " |", "|---" + "|--:" * len(table.columns) + "|"]
    for row in table.rows:
        cells = [_cell(value) for value in row.values]
        label = f"**{row.label}**" if row.is_average else row.label
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def _cell(value: Value | None) -> str:
    if value is None:
        return ""
    error = "" if math.isnan(value.stderr) else f" ± {value.stderr:.1f}"
    spread = "" if math.isnan(value.std) else f" (std {value.std:.1f} of {len(value.draws)} draws)"
    return f"{value.percent:.1f}{error}{spread}"


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    lines = [
        "| task | metric | language | models | difference | 95 % interval | documents |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    for c in comparisons:
        d, times = c.difference, scale(c.metric)
        mean = f"{times * d.mean:+.1f}"
        shown = f"**{mean}**" if d.is_significant else mean
        lines.append(
            f"| {c.task} | {_with_unit(c.metric)} | {c.language} | {c.b} - {c.a} | {shown} "
            f"| {times * d.low:+.1f} to {times * d.high:+.1f} | {d.count:,} |"
        )
    return "\n".join([*lines, "\nBold: zero lies outside the interval."])


def _with_unit(metric: str) -> str:
    """Return the metric's name, with its unit if that is not per cent."""
    return metric if unit(metric) == "%" else f"{metric} ({unit(metric)})"


def _power_table(rows: Sequence[Power]) -> str:
    lines = [
        "Two-sided test at 5 %, found four times out of five (power 80 %).\n",
        "| task | metric | language | models | to see 1 % you need about | here are | which show | models disagree |",
        "|---|---|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        needed = rounded(documents_needed(row.variance)) if row.variance else ""
        share = f"{100 * row.variance:.1f} %" if row.models else "not known"
        lines.append(
            f"| {row.task} | {row.metric} | {row.language} | {row.models or 'any two, unpaired, at worst'} "
            f"| {needed} | {row.count:,} | {shown(row.variance, row.count) if row.variance else ''} | {share} |"
        )
    return "\n".join([*lines, "\nDisagreement: the mean squared difference of two models' scores of one document."])


def _write_tables(path: Path, tables: Sequence[Table], common: Sequence[Table]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = ("items", "task", "metric", "language", "group", "model", "percent", "stderr", "documents")
        writer.writerow((*names, "draws", "std_of_draws"))
        for items, table in [*(("all", t) for t in tables), *(("common", t) for t in common)]:
            for row in table.rows:
                for column, value in zip(table.columns, row.values):
                    if value is not None:
                        stderr = "" if math.isnan(value.stderr) else value.stderr
                        about = (items, table.task, table.metric, row.label, row.group, column)
                        std = "" if math.isnan(value.std) else value.std
                        writer.writerow((*about, value.percent, stderr, value.count or "", len(value.draws) or "", std))


def _write_differences(path: Path, comparisons: Sequence[Comparison]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("task", "metric", "language", "a", "b", "b_minus_a", "low", "high", "documents"))
        for c in comparisons:
            d = c.difference
            writer.writerow((c.task, c.metric, c.language, c.a, c.b, d.mean, d.low, d.high, d.count))
