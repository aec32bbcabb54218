"""Fuzz targets of evaluation: benchmark files, and the output files of an evaluation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from evaluation.data.files import LocalData
from evaluation.lint import lint, render
from evaluation.report import markdown
from evaluation.results.output import MANIFEST, RESULTS, Output
from evaluation.results.runs import read_runs
from evaluation.results.tables import build_common_tables, build_comparisons, build_tables
from evaluation.scoring.build import read_items
from evaluation.tasks import all_tasks
from tests.evaluation import made_up
from tests.fuzz.corrupt import json_file, jsonl_file
from tests.fuzz.reader import Reader
from tests.launch.small import write_rows

ABOUT = {"task": "arc", "lang": "ne", "protocol": "strict", "shots": 0, "data": ["x"]}
TASKS = {f"arc.{lang}": {**ABOUT, "lang": lang} for lang in ("ne", "hi")}
RUN_MANIFEST = {"dtype": "float32", "device": "cpu", "versions": {"torch": "2"}, "tasks": TASKS}
RECORDS = [
    {"id": f"item{i}", "index": i, "scores": {"acc": i % 2}, "ties": {"acc": False}, "chance": 0.25,
     "context_sha256": str(i), "subject": "x"}
    for i in range(3)
]  # fmt: skip
ENTRY = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1}
RESULTS_FILE = {"results": {"arc_ne": ENTRY, "arc_hi": ENTRY}, "manifest": RUN_MANIFEST}
ROWS = {
    "arc": ("m_arc", [made_up.arc(n, "ABCD"[n]) for n in range(3)]),
    "mmlu": ("m_mmlu", [made_up.mmlu("anatomy", n) for n in range(3)]),
    "hellaswag": ("m_hellaswag", [made_up.hellaswag(n) for n in range(3)]),
    "truthfulqa_mc2": ("m_truthfulqa", [made_up.truthfulqa(n) for n in range(3)]),
}


def items(task: str) -> Callable[[Path], None]:
    """Return a function that reads a task's items, skipping or refusing bad records, and lints them each time."""

    def read(path: Path) -> None:
        data, found = LocalData(path.parents[1]), all_tasks()[task]
        for skip_bad in (True, False):
            counts: Counter[str] = Counter()
            try:
                kept = read_items(found, "en", data, "test", skip_bad, counts, [])
                assert all(item.question.encode() and item.gold < len(item.options) for item in kept)
            finally:
                render(lint(path.parents[1], [found]))

    return read


def make_output(folder: Path) -> None:
    for name, value in ((MANIFEST, RUN_MANIFEST), (RESULTS, RESULTS_FILE)):
        (folder / name).write_text(json.dumps(value))
    for key in TASKS:
        write_rows(folder / f"{key}.jsonl", RECORDS)


def report(path: Path) -> None:
    """Build the whole report of two models, one with valid files."""
    good = path.parent / "good"
    if not good.exists():
        good.mkdir()
        make_output(good)
    runs = read_runs([f"a={path.parent}", f"b={good}"], mixed=True)
    tables, common = build_tables(runs), build_common_tables(runs)
    markdown(runs, tables, common, *build_comparisons(runs)).encode()


def resumed_output(path: Path) -> None:
    """Check an output folder before going on with it, as launch/evaluate.py does."""
    output = Output(path.parent)
    output.check(RUN_MANIFEST, overwrite=False)
    for key, about in TASKS.items():
        output.check_task(key, about)
        output.records("arc", about["lang"]).done(("acc",))


READERS = {
    **{
        f"benchmark {task}": Reader(json_file(rows), items(task), f"{folder}/en_test.json")
        for task, (folder, rows) in ROWS.items()
    },
    "evaluation results.json": Reader(json_file(RESULTS_FILE), report, RESULTS, make_output),
    "evaluation records": Reader(jsonl_file(RECORDS), report, "arc.ne.jsonl", make_output),
    "evaluation manifest.json": Reader(json_file(RUN_MANIFEST), resumed_output, MANIFEST, make_output),
    "resumed evaluation records": Reader(jsonl_file(RECORDS), resumed_output, "arc.ne.jsonl", make_output),
}
