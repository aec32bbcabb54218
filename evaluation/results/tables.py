"""Build the tables of a report: a row per language and per average, a column per model; and paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.base.languages import LANGUAGES
from evaluation.results.compare import (
    Difference,
    common_items,
    has_item_ids,
    mean_over_languages,
    paired_difference,
    scores_by_item,
)
from evaluation.results.published import PUBLISHED
from evaluation.results.runs import Cell, Runs
from evaluation.results.units import scale

GROUP_TITLES = {"high": "high-resource", "medium": "medium-resource", "low": "low-resource", "none": "other"}


@dataclass(frozen=True)
class Value:
    """A score in the metric's unit, mostly per cent.

    stderr  in the same unit, nan if unknown
    count   number of documents, 0 if unknown
    draws   the score in each draw of shots, in the same unit; empty for a run without --seeds
    """

    percent: float
    stderr: float = math.nan
    count: int = 0
    draws: tuple[float, ...] = ()

    @property
    def std(self) -> float:
        """The standard deviation over the draws, nan for fewer than two."""
        return statistics.stdev(self.draws) if len(self.draws) > 1 else math.nan


@dataclass(frozen=True)
class Row:
    """A language, or an average of languages. values: one per column, None where a model has no number."""

    label: str
    group: str
    values: list[Value | None]
    is_average: bool = False


@dataclass(frozen=True)
class Table:
    task: str
    metric: str
    columns: list[str]
    rows: list[Row]
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    """Model b compared with model a on one task and metric. language: a code, or a text for several languages."""

    task: str
    metric: str
    language: str
    a: str
    b: str
    difference: Difference


def in_order(languages: Iterable[str]) -> list[str]:
    """Sort languages as in the paper's tables, by group; English and languages that users registered come last."""
    known = list(LANGUAGES)
    groups = list(GROUP_TITLES)
    return sorted(languages, key=lambda code: (groups.index(LANGUAGES[code].group), known.index(code)))


def build_tables(runs: Runs) -> list[Table]:
    """Return tables like the paper's tables 3 to 8, one per task and metric."""
    return [_table(runs, task, metric) for task in runs.tasks() for metric in runs.metrics(task)]


def _table(runs: Runs, task: str, metric: str) -> Table:
    languages, notes, times = in_order(runs.languages(task)), [], scale(metric)
    published = PUBLISHED.get((task, metric), {})
    rows = []
    for code in languages:
        cells = [runs.cells[name].get((task, code)) for name in runs.models]
        values = [_value(cell, metric) if cell else None for cell in cells]
        chance = next(cell.chance for cell in cells if cell)
        own = Value(times * chance) if chance and metric == runs.metrics(task)[0] else None
        rows.append(Row(_language_label(code), LANGUAGES[code].group, [*values, own, *[None] * len(published)]))
    averages = {group: [code for code in languages if LANGUAGES[code].group == group] for group in GROUP_TITLES}
    averages = {group: codes for group, codes in averages.items() if group != "none"}
    averages["all"] = [code for code in languages if LANGUAGES[code].group != "none"]
    if any("llama" in groups for groups in published.values()):
        averages["llama"] = [code for code in averages["all"] if LANGUAGES[code].llama]
    for group, codes in averages.items():
        values = [_average(runs, task, metric, name, codes) for name in runs.models]
        others = [Value(groups[group]) if group in groups else None for groups in published.values()]
        repeats_a_row = len(codes) < 2 or (group == "all" and len({LANGUAGES[code].group for code in codes}) < 2)
        if not codes or not any(others) and (repeats_a_row or not any(values)):
            continue
        rows.append(Row(_average_label(group, len(codes)), group, [*values, None, *others], is_average=True))
        for name, value in zip(runs.models, values):
            has = [code for code in codes if (task, code) in runs.cells[name]]
            if value is None and has:
                notes.append(f"{name} has {len(has)} of the {len(codes)} languages of '{group}': no average")
    return Table(task, metric, [*runs.models, "chance", *published], rows, notes)


def _value(cell: Cell, metric: str) -> Value:
    mean, error = cell.metrics[metric]
    times = scale(metric)
    draws = tuple(times * value for value in cell.draws.get(metric, ()))
    return Value(times * mean, times * error, len(cell.records), draws)


def _language_label(code: str) -> str:
    return f"{LANGUAGES[code].name} ({code})"


def _average_label(group: str, count: int) -> str:
    title = {"all": "all of them", "llama": "LLaMA's languages"}.get(group) or GROUP_TITLES[group]
    return f"average, {title} ({count})"


def _average(runs: Runs, task: str, metric: str, name: str, codes: Sequence[str]) -> Value | None:
    """Return the mean over languages, or None if the model lacks one: means over other languages do not compare."""
    cells = [runs.cells[name].get((task, code)) for code in codes]
    if not cells or not all(cells):
        return None
    values = [_value(cell, metric) for cell in cells if cell]
    same_draws = len({len(value.draws) for value in values}) == 1
    return Value(
        math.fsum(value.percent for value in values) / len(values),
        math.sqrt(math.fsum(value.stderr**2 for value in values)) / len(values),
        sum(value.count for value in values),
        tuple(math.fsum(draw) / len(values) for draw in zip(*(v.draws for v in values))) if same_draws else (),
    )


def build_comparisons(runs: Runs) -> tuple[list[Comparison], list[str]]:
    """Compare the first model with each other one, per language and on the items that all languages share.

    Return the comparisons and notes about prompts that differ.
    """
    found, notes = [], []
    for task, b in ((task, b) for task in runs.tasks() for b in runs.models[1:]):
        a = runs.models[0]
        both = in_order([c for c in runs.languages(task) if all((task, c) in runs.cells[m] for m in (a, b))])
        aligned = [code for code in both if _is_aligned(runs, task, code)]
        for metric in runs.metrics(task):
            left, right = (
                {code: scores_by_item(runs.cells[m][task, code].records, metric) for code in both} for m in (a, b)
            )
            for code in both:
                if difference := paired_difference(left[code], right[code]):
                    found.append(Comparison(task, metric, code, a, b, difference))
            if len(aligned) > 1:
                sides = [[side[code] for code in aligned] for side in (left, right)]
                items = common_items([*sides[0], *sides[1]])
                if difference := paired_difference(*(mean_over_languages(side, items) for side in sides)):
                    together = f"{len(aligned)} languages, common items"
                    found.append(Comparison(task, metric, together, a, b, difference))
        notes += _other_prompts(runs, task, a, b, both)
    return found, notes


def build_common_tables(runs: Runs) -> list[Table]:
    """Return tables over only the items that all languages and models have: not every item was translated."""
    tables = []
    for task in runs.tasks():
        languages = [code for code in in_order(runs.languages(task)) if _is_aligned(runs, task, code)]
        for metric in runs.metrics(task) if len(languages) > 1 else ():
            scores = {
                (name, code): scores_by_item(cells[task, code].records, metric)
                for name, cells in runs.cells.items()
                for code in languages
                if (task, code) in cells
            }
            if items := common_items(list(scores.values())):
                means = {
                    key: Value(scale(metric) * math.fsum(side[i] for i in items) / len(items), count=len(items))
                    for key, side in scores.items()
                }
                rows = [
                    Row(_language_label(c), LANGUAGES[c].group, [means.get((name, c)) for name in runs.models])
                    for c in languages
                ]
                tables.append(Table(task, metric, runs.models, rows, [f"{len(items):,} items that all have"]))
    return tables


def _is_aligned(runs: Runs, task: str, code: str) -> bool:
    """Return whether a document's id means the same question in every language of the paper.

    It does not in English, where ARC's files number their rows, and in TruthfulQA, which has no ids.
    """
    cells = [cells[task, code] for cells in runs.cells.values() if (task, code) in cells]
    return LANGUAGES[code].group != "none" and all(has_item_ids(cell.records) for cell in cells)


def _other_prompts(runs: Runs, task: str, a: str, b: str, languages: Sequence[str]) -> list[str]:
    """Return a note for each language with prompts that differ: a tokenizer or --max-length may drop other shots."""
    notes = []
    for code in languages:
        left, right = ({r["index"]: r["context_sha256"] for r in runs.cells[m][task, code].records} for m in (a, b))
        common = [index for index in left if index in right]
        if other := sum(left[index] != right[index] for index in common):
            notes.append(f"{task}.{code}: {other:,} of {len(common):,} prompts differ between {a} and {b}")
    return notes
