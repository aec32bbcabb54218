"""Finished evaluations under the name of the model they are of, read and checked before they stand side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from evaluation.results.manifest import differences
from evaluation.results.output import Output
from evaluation.results.summary import Record

Key = tuple[str, str]  # task, language
# What decides which question is put: two results that differ here do not measure the same.
SETTINGS = ("protocol", "shots", "shared_shots", "limit", "split", "seed", "bad_records")
NUMERICS = ("dtype", "device", "versions", "code_sha256")


@dataclass(frozen=True)
class Cell:
    """One task in one language, as one model answered it.

    metrics  the main one first, each a value and its standard error, in the units of results.json
    """

    about: Mapping[str, Any]
    metrics: Mapping[str, tuple[float, float]]
    records: Sequence[Record]
    chance: float


@dataclass
class Runs:
    """cells by model and by task and language; notes: what a reader must know about how they compare."""

    cells: dict[str, dict[Key, Cell]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        return list(self.cells)

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for cells in self.cells.values() for task, _ in cells))

    def languages(self, task: str) -> list[str]:
        return list(dict.fromkeys(lang for cells in self.cells.values() for t, lang in cells if t == task))

    def metrics(self, task: str) -> list[str]:
        found = (
            name
            for cells in self.cells.values()
            for (t, _), cell in cells.items()
            if t == task
            for name in cell.metrics
        )
        return list(dict.fromkeys(found))


def read_runs(arguments: Iterable[str], mixed: bool) -> Runs:
    """Read folders given as DIR or NAME=DIR; folders of one name are put together, so that it may be one a language.

    UserError where two folders of a name hold the same task and language, and, unless `mixed`, where the settings or
    the data of a task differ: what differs is then told in the notes.
    """
    runs, manifests = Runs(), {}
    for argument in arguments:
        name, folder = _named(argument)
        output = Output(folder)
        results = output.results()
        manifests[folder] = results["manifest"]
        cells = runs.cells.setdefault(name, {})
        for key, about in results["manifest"]["tasks"].items():
            task, lang = about["task"], about["lang"]
            if (entry := results["results"].get(f"{task}_{lang}")) is None:
                runs.notes.append(f"{folder} has begun {key} and not ended it: it is left out")
                continue
            if (task, lang) in cells:
                raise UserError(f"{name} has {key} twice, the second time in {folder}: give the two different names")
            metrics = _metrics(entry)
            records = [record for _, record in sorted(output.records(task, lang).done(metrics).items())]
            if not records:
                raise UserError(f"{folder} has results of {key} and no records: restore {key}.jsonl, or evaluate anew")
            chance = sum(record["chance"] for record in records) / len(records)
            cells[task, lang] = Cell(about, metrics, records, chance)
    problems = list(_differences(runs))
    if problems and not mixed:
        raise UserError(f"{problems[0]}: report them apart, or side by side with --mixed, which says so in the report")
    runs.notes += [*problems, *_numerics(manifests)]
    return runs


def _named(argument: str) -> tuple[str, Path]:
    name, equals, folder = argument.partition("=")
    if not equals:
        name, folder = Path(argument).name, argument
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is no folder: give the --output of launch/evaluate.py, or NAME=FOLDER")
    return name, Path(folder)


def _metrics(entry: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    names = [name.removesuffix(",none") for name in entry if name.endswith(",none") and "_stderr" not in name]
    errors = [entry[f"{name}_stderr,none"] for name in names]
    return {
        name: (entry[f"{name},none"], float("nan") if error == "N/A" else error) for name, error in zip(names, errors)
    }


def _differences(runs: Runs) -> Iterable[str]:
    """Settings of a task that differ anywhere, and data of a task in one language that differ between models."""
    for task in runs.tasks():
        cells = [
            (name, lang, cell) for name in runs.models for (t, lang), cell in runs.cells[name].items() if t == task
        ]
        first_name, first_lang, first = cells[0]
        by_lang: dict[str, tuple[str, Cell]] = {}
        for name, lang, cell in cells:
            for setting in SETTINGS:
                if (ours := first.about.get(setting)) != (theirs := cell.about.get(setting)):
                    yield (
                        f"{task}: {first_name} ({first_lang}) has {setting} {ours!r}, {name} ({lang}) has {theirs!r}"
                    )
            other, known = by_lang.setdefault(lang, (name, cell))
            if known.about["data"] != cell.about["data"]:
                yield f"{task}.{lang}: {other} and {name} read different data files"


def _numerics(manifests: Mapping[Path, Mapping[str, Any]]) -> Iterable[str]:
    """Where the machines or libraries differ, scores may differ in the last digits."""
    (first, reference), *others = manifests.items()
    for folder, manifest in others:
        a, b = ({name: m.get(name) for name in NUMERICS} for m in (reference, manifest))
        if names := differences(a, b):
            yield f"{first} and {folder} differ in {', '.join(names)}: scores may differ in the last digits"
