"""`python -m evaluation lint DATA`: find faults and oddities in a folder of benchmark files before a run."""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.languages import LANGUAGES
from evaluation.data.files import PARTS, LocalData, Records, open_data
from evaluation.data.items import Item, Unlabelled
from evaluation.data.questions import Question
from evaluation.data.scripts import check_script
from evaluation.data.sets import SETS
from evaluation.tasks import AnswerTask, Task, all_tasks, answer_tasks

SHOTS_PER_SUBJECT = 5
_EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """A fault or an oddity. With is_error, a record or a file is unusable; otherwise the evaluation can handle it."""

    file: str
    kind: str
    detail: str
    is_error: bool = False


@dataclass
class Report:
    """The findings. counts: (folder, part, language) -> number of records."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[tuple[str, str, str], int] = field(default_factory=dict)


AnyTask = Task | AnswerTask


def lint(folder: Path, tasks: Sequence[AnyTask] | None = None) -> Report:
    """Check every file <folder>/<benchmark>/<lang>_<part>.json of these tasks, by default of all known tasks.

    UserError if the folder holds no such file.
    """
    data = open_data(folder)
    assert isinstance(data, LocalData)
    report = Report()
    by_folder: dict[str, list[AnyTask]] = defaultdict(list)
    for task in [*all_tasks().values(), *answer_tasks().values()] if tasks is None else tasks:
        by_folder[task.folder].append(task)
    for name, its_tasks in by_folder.items():
        _lint_benchmark(data, name, its_tasks, report)
    if not report.counts:
        known = ", ".join(by_folder)
        raise UserError(f"{folder} holds no benchmark file: give the folder that holds {known}")
    # Two tasks that read the same file (TruthfulQA, references) report the same findings.
    report.findings = list(dict.fromkeys(report.findings))
    return report


def _lint_benchmark(data: LocalData, folder: str, tasks: Sequence[AnyTask], report: Report) -> None:
    seen: dict[str, dict[tuple, tuple[str, str]]] = defaultdict(dict)
    for lang, part in _files(data, folder):
        try:
            records = data.read(folder, lang, part)
        except UserError as error:
            report.findings.append(Finding(f"{folder}/{lang}_{part}", "unreadable", str(error), is_error=True))
            continue
        report.counts[folder, part, lang] = len(records.rows)
        for task in tasks:
            items = list(_read(task, lang, records, report))
            if isinstance(task, AnswerTask):
                _lint_questions(lang, records.source.name, items, report)
                continue
            _lint_items(task, lang, part, records.source.name, items, report)
            if task is tasks[0]:
                _lint_overlaps(part, records.source.name, items, seen[lang], report)


def _files(data: LocalData, folder: str) -> Iterator[tuple[str, str]]:
    """Yield (language, part) of every file, English first."""
    names = {path.name.split(".json")[0] for path in (data.folder / folder).glob("*_*.json*")}
    pairs = {tuple(name.rsplit("_", 1)) for name in names}
    if folder in SETS:
        for lang, own_name in SETS[folder].names.items():
            pairs.discard(tuple(own_name.rsplit("_", 1)))
            pairs |= {(lang, part) for part in SETS[folder].files if data.has(folder, lang, part)}
    yield from sorted(pairs, key=lambda pair: (pair[0] != "en", pair))


def _read(task: AnyTask, lang: str, records: Records, report: Report) -> Iterator[Any]:
    """Yield the Items or Questions of a file; records that cannot be read become findings."""
    rows = [row for row in records.rows if isinstance(task, AnswerTask) or not task.keep or task.keep(row[1], lang)]
    for index, (place, record) in enumerate(rows):
        try:
            yield task.read(record, place, index)
        except Unlabelled:
            report.findings.append(Finding(records.source.name, "no answer", place))
        except UserError as error:
            report.findings.append(Finding(records.source.name, "unusable record", str(error), is_error=True))


def _lint_items(task: Task, lang: str, part: str, file: str, items: Sequence[Item], report: Report) -> None:
    def note(kind: str, detail: str, is_error: bool = False) -> None:
        report.findings.append(Finding(file, kind, detail, is_error))

    for item in items:
        if len(set(item.options)) < len(item.options):
            note("equal options", item.place)
        if "mc2" in task.metrics and list(item.truth) != sorted(item.truth, reverse=True):
            note("a true choice after a false one (protocol okapi counts it as false)", item.place)
    _lint_texts(lang, file, [item.id for item in items], [item.question for item in items], note)
    if task.groups:
        _lint_subjects(task, part, items, note)


def _lint_questions(lang: str, file: str, questions: Sequence[Question], report: Report) -> None:
    def note(kind: str, detail: str, is_error: bool = False) -> None:
        report.findings.append(Finding(file, kind, detail, is_error))

    for question in questions:
        if both := set(question.references) & set(question.wrong):
            note("an answer is both right and wrong", f"{question.place}: {min(both)!r:.60}")
    for prompt, count in Counter(question.prompt.strip() for question in questions).items():
        if count > 1:
            note("prompt given more than once", f"{prompt!r:.60}: {count} times")
    _lint_texts(lang, file, [q.id for q in questions], [q.prompt for q in questions], note)


def _lint_texts(lang: str, file: str, ids: Sequence[str], texts: Sequence[str], note) -> None:
    """Note ids that occur twice, and texts in a script that the language does not have."""
    for name, count in Counter(ids).items():
        if count > 1:
            note("id given more than once", f"{name}: {count} times")
    if lang in LANGUAGES:
        try:
            check_script(LANGUAGES[lang], file, iter(texts))
        except UserError as error:
            note("script of another language", str(error), is_error=True)
    else:
        note("language not registered", lang, is_error=True)


def _lint_subjects(task: Task, part: str, items: Sequence[Item], note) -> None:
    known = {subject for subjects in task.groups.values() for subject in subjects}
    counts = Counter(item.subject for item in items)
    for item in items:
        if item.subject is None:
            note("no subject in the id", f"{item.place}: {item.id!r}")
        elif item.subject not in known:
            note("unknown subject", f"{item.place}: {item.subject!r}")
        elif item.id.count("/") == 2 and item.id.split("/")[1] not in PARTS.get(part, (part,)):
            note("id of another part", f"{item.place}: {item.id!r}")
    if absent := sorted(known - set(counts)):
        note("subjects missing", ", ".join(absent))
    short = sorted(name for name in known & set(counts) if counts[name] < SHOTS_PER_SUBJECT)
    if part in PARTS["dev"] and short:
        note(f"subjects with fewer than {SHOTS_PER_SUBJECT} shots", ", ".join(short))


def _lint_overlaps(part: str, file: str, items: Sequence[Item], seen: dict, report: Report) -> None:
    """Report a question that two parts of one language have with the same options: as a shot it reveals the answer."""
    for item in items:
        content = (item.question.strip(), frozenset(option.strip() for option in item.options))
        other_part, other_place = seen.setdefault(content, (part, item.place))
        if other_part != part:
            report.findings.append(Finding(file, "also in another part", f"{item.place} equals {other_place}"))


def render(report: Report) -> str:
    """Format the report: the findings by file and kind, then the number of records by language, relative to English."""
    lines = []
    groups: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
    for finding in report.findings:
        groups[finding.file, finding.kind, finding.is_error].append(finding.detail)
    for (file, kind, is_error), details in sorted(groups.items()):
        lines.append(f"{'error' if is_error else 'note '}  {file}: {kind}: {len(details)}")
        lines += [f"         {detail}" for detail in details[:_EXAMPLES]]
        if len(details) > _EXAMPLES:
            lines.append(f"         and {len(details) - _EXAMPLES} more")
    lines += ["", f"{'records':<28}{'English':>9}  of English, by language"]
    for folder, part in dict.fromkeys((folder, part) for folder, part, _ in report.counts):
        in_english = report.counts.get((folder, part, "en"))
        shares = [
            f"{lang} {count:,}" + (f" ({count / in_english:.1%})" if in_english else "")
            for (a, b, lang), count in sorted(report.counts.items())
            if (a, b) == (folder, part) and lang != "en"
        ]
        lines.append(f"{f'{folder} {part}':<28}{in_english or '-':>9}  {', '.join(shares)}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the report and return the exit status: 1 if something is unusable, else 0."""
    description = "Find faults and oddities in a folder of benchmark files before a run."
    parser = argparse.ArgumentParser(prog="python -m evaluation lint", description=description)
    parser.add_argument("data", type=Path, metavar="DATA", help="the folder that holds m_arc, m_hellaswag and so on")
    report = lint(parser.parse_args(arguments).data)
    print(render(report))
    return int(any(finding.is_error for finding in report.findings))
