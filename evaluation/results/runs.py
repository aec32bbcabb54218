"""Read finished evaluations by the name of their model, and check that they can be compared."""

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
# Settings that change the questions: results that differ here do not measure the same.
SETTINGS = ("protocol", "shots", "shared_shots", "limit", "split", "seed", "seeds", "bad_records", "answers")
NUMERICS = ("dtype", "device", "versions", "code_sha256")


@dataclass(frozen=True)
class Cell:
    """The results of one model on one task in one language.

    about    the task's entry in the manifest
    metrics  name -> (value, standard error) as in results.json, the main metric first; nan where there is no error
    chance   the mean score of guessing
    draws    metric -> its value in each draw of shots; empty for a run without --seeds
    """

    about: Mapping[str, Any]
    metrics: Mapping[str, tuple[float, float]]
    records: Sequence[Record]
    chance: float
    draws: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass
class Runs:
    """Results by model name and (task, language). notes: what a reader must know to compare them."""

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
    """Read folders given as DIR or NAME=DIR. Folders of one name are merged, such as one folder per language.

    mixed  allow settings or data of a task to differ, and say so in the notes

    UserError if two folders of one name have the same task and language, or if settings or data differ without mixed.
    """
    runs, manifests = Runs(), {}
    for argument in arguments:
        name, folder = _name_and_folder(argument)
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
                raise UserError(f"{folder} has results of {key} but no records: restore {key}.jsonl or evaluate again")
            chance = sum(record["chance"] for record in records) / len(records)
            spreads = results.get("draws", {}).get(f"{task}_{lang}", {}) if "seeds" in about else {}
            draws = {metric: spread["values"] for metric, spread in spreads.items()}
            cells[task, lang] = Cell(about, metrics, records, chance, draws)
    problems = list(_differences(runs))
    if problems and not mixed:
        raise UserError(f"{problems[0]}: report them apart, or side by side with --mixed, which says so in the report")
    runs.notes += [*problems, *_numerics(manifests)]
    return runs


def _name_and_folder(argument: str) -> tuple[str, Path]:
    name, equals, folder = argument.partition("=")
    if not equals:
        name, folder = Path(argument).name, argument
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder: give the --output of launch/evaluate.py, or NAME=FOLDER")
    return name, Path(folder)


def _metrics(entry: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    names = [name.removesuffix(",none") for name in entry if name.endswith(",none") and "_stderr" not in name]
    errors = [entry[f"{name}_stderr,none"] for name in names]
    return {
        name: (entry[f"{name},none"], float("nan") if error == "N/A" else error) for name, error in zip(names, errors)
    }


def _differences(runs: Runs) -> Iterable[str]:
    """Yield a note for each setting that differs within a task, and for data that differ within a task and language."""
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
    """Yield a note for each folder with another dtype, device, library version or code than the first."""
    (first, reference), *others = manifests.items()
    for folder, manifest in others:
        a, b = ({name: m.get(name) for name in NUMERICS} for m in (reference, manifest))
        if names := differences(a, b):
            yield f"{first} and {folder} differ in {', '.join(names)}: scores may differ in the last digits"
