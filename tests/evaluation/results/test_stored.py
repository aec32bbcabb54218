"""What an evaluation has stored, read back: names stay names, numbers are numbers, a bad line is named."""

from __future__ import annotations

import json

import pytest

from engine.base.errors import UserError
from evaluation.results.output import MANIFEST, RESULTS
from evaluation.results.records import RecordFile
from evaluation.results.runs import read_runs
from evaluation.results.stored import read_manifest, read_results
from tests.fuzz.evaluation_files import ABOUT, ENTRY, RECORDS, RESULTS_FILE, RUN_MANIFEST, make_output


def refusal(read, *arguments):
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_good_is_read(tmp_path):
    assert read_manifest(tmp_path / MANIFEST) is None
    assert read_results(tmp_path / RESULTS) is None
    make_output(tmp_path)
    assert read_manifest(tmp_path / MANIFEST) == RUN_MANIFEST
    assert read_results(tmp_path / RESULTS) == RESULTS_FILE
    assert RecordFile(tmp_path, "arc", "ne").done(("acc",)) == {row["index"]: row for row in RECORDS}


@pytest.mark.parametrize("task", ["../arc", "a/b", "..", ".arc", "", "a\0b", "a" * 101, 3])
def test_a_tasks_name_is_no_path(tmp_path, task):
    """The records of a task lie in a file of its name."""
    make_output(tmp_path)
    tasks = {f"{task}.ne": {**ABOUT, "task": task}}
    (tmp_path / RESULTS).write_text(json.dumps({**RESULTS_FILE, "manifest": {**RUN_MANIFEST, "tasks": tasks}}))
    assert "results.json: holds no task and language of" in refusal(read_runs, [str(tmp_path)], False)


def test_a_language_is_one_that_is_known(tmp_path):
    tasks = {"arc.nepali": {**ABOUT, "lang": "nepali"}}
    (tmp_path / MANIFEST).write_text(json.dumps({**RUN_MANIFEST, "tasks": tasks}))
    assert "did you mean 'ne'" in refusal(read_manifest, tmp_path / MANIFEST)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"results": []}, "holds no results with their manifest"),
        ({"manifest": None}, "holds no results with their manifest"),
        ({"results": {"arc_ne": {"alias": "x"}}}, "holds no metrics of 'arc_ne'"),
        ({"results": {"arc_ne": {**ENTRY, "acc,none": "1"}}}, "holds no metrics of 'arc_ne'"),
        ({"results": {"arc_ne": {"acc,none": 0.5}}}, "holds no standard error of 'arc_ne'"),
        ({"manifest": {**RUN_MANIFEST, "tasks": {"arc.hi": ABOUT}}}, "holds no task and language of 'arc.hi'"),
    ],
)
def test_results_that_are_none(tmp_path, change, words):
    (tmp_path / RESULTS).write_text(json.dumps({**RESULTS_FILE, **change}))
    assert words in refusal(read_results, tmp_path / RESULTS)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "bad JSON"),
        ("[1]", "holds no object"),
        ({"index": True}, "holds no proper 'index'"),
        ({"scores": {"acc": "1"}}, "holds scores that are no numbers"),
        ({"scores": {}}, "holds no score 'acc'"),
        ({"ties": {"acc": 1}}, "holds ties that are no truth values"),
        ({"chance": None}, "holds no chance"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, line, words):
    text = line if isinstance(line, str) else json.dumps({**RECORDS[0], **line})
    (tmp_path / "arc.ne.jsonl").write_text(f"{json.dumps(RECORDS[1])}\n{text}\n")
    message = refusal(RecordFile(tmp_path, "arc", "ne").done, ("acc",))
    assert message.startswith(f"{tmp_path / 'arc.ne.jsonl'}:2: ")
    assert words in message


def test_results_without_their_records(tmp_path):
    make_output(tmp_path)
    (tmp_path / "arc.hi.jsonl").unlink()
    assert "has results of arc.hi and no records: restore arc.hi.jsonl" in refusal(read_runs, [str(tmp_path)], False)
