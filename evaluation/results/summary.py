"""results.json: means over the records of a run, with the field names of lm-eval's results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluation.scoring.metrics import Mean

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """The means of a task, a group, a subset or a subject.

    name      "mmlu_en", "mmlu_en_stem" or "mmlu_en_anatomy"
    metrics   name -> mean over documents, the task's main metric first
    ties      metric -> number of documents with two equal best choices, for the metrics that pick a choice
    chance    the main metric's value for a model that guesses
    members   names of the subjects of a group or task; empty for a subject and for a task without subjects
    apart     whether the line is a subset
    """

    name: str
    metrics: dict[str, Mean]
    ties: dict[str, int]
    chance: float
    members: tuple[str, ...] = ()
    apart: bool = False

    @property
    def count(self) -> int:
        return next(iter(self.metrics.values())).count


def summarise(
    task: str,
    lang: str,
    metrics: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    average: str,
    records: Sequence[Record],
) -> list[Summary]:
    """Return the summaries of the whole task, of its groups, of its subsets and of its subjects, in this order.

    average  take the means of task and groups over "documents", or over "subjects" with equal weights
    """
    name = f"{task}_{lang}"
    by_subject: dict[str, list[Record]] = {}
    for record in records:
        if subject := record.get("subject"):
            by_subject.setdefault(subject, []).append(record)
    subjects = {s: _summary_of(f"{name}_{s}", metrics, rows) for s, rows in sorted(by_subject.items())}

    def over_subjects(title: str, members: Iterable[str], rows: Sequence[Record]) -> Summary:
        parts = [subjects[s] for s in members if s in subjects]
        whole = _summary_of(title, metrics, rows)
        if average == "subjects" and parts:
            means = {metric: Mean.of_means([part.metrics[metric] for part in parts]) for metric in metrics}
            whole = replace(whole, metrics=means)
        return replace(whole, members=tuple(part.name for part in parts))

    lines = [over_subjects(name, subjects, records)]
    for group, members in groups.items():
        if rows := [record for s in members for record in by_subject.get(s, [])]:
            lines.append(over_subjects(f"{name}_{group}", members, rows))
    for subset in sorted({record["subset"] for record in records if record.get("subset")}):
        rows = [record for record in records if record.get("subset") == subset]
        lines.append(replace(_summary_of(f"{name}_{subset}", metrics, rows), apart=True))
    return [*lines, *subjects.values()]


def _summary_of(name: str, metrics: Sequence[str], records: Sequence[Record]) -> Summary:
    means = {metric: Mean.of([record["scores"][metric] for record in records]) for metric in metrics}
    ties = {metric: sum(record["ties"][metric] for record in records) for metric in records[0]["ties"]}
    return Summary(name, means, ties, Mean.of([record["chance"] for record in records]).value)


def results_json(
    summaries: Mapping[str, Sequence[Summary]],
    manifest: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, int]],
    config: Mapping[str, Any],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of the file. `summaries`, `counts` and manifest["tasks"] are keyed by "<task>.<lang>".

    run  further top-level entries: model, dates, work

    As in lm-eval's file, the key of a metric is "acc,none" (none: no filter) and that of its error "acc_stderr,none".
    """
    results, groups, configs, shots, samples, better = {}, {}, {}, {}, {}, {}
    subtasks: dict[str, list[str]] = {}
    for key, lines in summaries.items():
        about = manifest["tasks"][key]
        for line in lines:
            results[line.name] = _entry(line)
            better[line.name] = dict.fromkeys(line.metrics, True)
            shots[line.name] = about["shots"]
            samples[line.name] = {"original": about["data"][0]["num_records"], "effective": line.count}
            if line.members:
                groups[line.name] = results[line.name]
                subtasks[line.name] = list(line.members)
        configs[lines[0].name] = {
            "task": lines[0].name,
            "output_type": "multiple_choice",
            "num_fewshot": about["shots"],
            "metadata": {"protocol": about["protocol"], "counts": dict(counts[key])},
        }
    return {
        "results": results,
        "groups": groups,
        "group_subtasks": subtasks,
        "configs": configs,
        "versions": dict.fromkeys(results, manifest["format"]),
        "n-shot": shots,
        "higher_is_better": better,
        "n-samples": samples,
        "config": dict(config),
        "ties": {line.name: line.ties for lines in summaries.values() for line in lines},
        **run,
        "manifest": dict(manifest),
    }


def _entry(line: Summary) -> dict[str, Any]:
    entry: dict[str, Any] = {"alias": line.name}
    for metric, mean in line.metrics.items():
        entry[f"{metric},none"] = mean.value
        entry[f"{metric}_stderr,none"] = "N/A" if math.isnan(mean.stderr) else mean.stderr
    return entry
