"""Reading back an evaluation's files: valid files are returned, and a UserError names a bad field or line."""

from __future__ import annotations

import json

import pytest

from engine.base.errors import UserError
from evaluation.results.output import MANIFEST, RESULTS
from evaluation.results.records import RecordFile
from evaluation.results.runs import read_runs
from evaluation.results.stored import read_manifest, read_results
from tests.fuzz.evaluation_files import ABOUT, ENTRY, RECORDS, RESULTS_FILE, RUN_MANIFEST, make_output


def error_of(read, *arguments):
    """Call a reader that must raise a UserError of one line. Return its message."""
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_valid_files_are_read(tmp_path):
    assert read_manifest(tmp_path / MANIFEST) is None
    assert read_results(tmp_path / RESULTS) is None
    make_output(tmp_path)
    assert read_manifest(tmp_path / MANIFEST) == RUN_MANIFEST
    assert read_results(tmp_path / RESULTS) == RESULTS_FILE
    assert RecordFile(tmp_path, "arc", "ne").done(("acc",)) == {row["index"]: row for row in RECORDS}


@pytest.mark.parametrize("task", ["../arc", "a/b", "..", ".arc", "", "a\0b", "a" * 101, 3])
def test_task_name_that_is_not_a_file_name_is_refused(tmp_path, task):
    """The name of a task is part of the name of its record file."""
    make_output(tmp_path)
    tasks = {f"{task}.ne": {**ABOUT, "task": task}}
    (tmp_path / RESULTS).write_text(json.dumps({**RESULTS_FILE, "manifest": {**RUN_MANIFEST, "tasks": tasks}}))
    assert "results.json: holds no valid task and language for" in error_of(read_runs, [str(tmp_path)], False)


def test_unknown_language_is_refused(tmp_path):
    tasks = {"arc.nepali": {**ABOUT, "lang": "nepali"}}
    (tmp_path / MANIFEST).write_text(json.dumps({**RUN_MANIFEST, "tasks": tasks}))
    assert "did you mean 'ne'" in error_of(read_manifest, tmp_path / MANIFEST)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"results": []}, "holds no valid results and manifest"),
        ({"manifest": None}, "holds no valid results and manifest"),
        ({"results": {"arc_ne": {"alias": "x"}}}, "holds no valid metrics for 'arc_ne'"),
        ({"results": {"arc_ne": {**ENTRY, "acc,none": "1"}}}, "holds no valid metrics for 'arc_ne'"),
        ({"results": {"arc_ne": {"acc,none": 0.5}}}, "holds no standard error for 'arc_ne'"),
        ({"draws": [1]}, "holds no valid draws"),
        ({"draws": {"arc_ne": {"acc": {"values": []}}}}, "holds no valid draws of 'arc_ne'"),
        ({"draws": {"arc_ne": {"acc": {"values": ["1"]}}}}, "holds no valid draws of 'arc_ne'"),
        ({"draws": {"arc_ne": {"acc": 0.5}}}, "holds no valid draws of 'arc_ne'"),
        ({"manifest": {**RUN_MANIFEST, "tasks": {"arc.hi": ABOUT}}}, "holds no valid task and language for 'arc.hi'"),
    ],
)
def test_invalid_results_are_refused(tmp_path, change, words):
    (tmp_path / RESULTS).write_text(json.dumps({**RESULTS_FILE, **change}))
    assert words in error_of(read_results, tmp_path / RESULTS)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "bad JSON"),
        ("[1]", "holds no JSON object"),
        ({"index": True}, "holds no valid 'index'"),
        ({"scores": {"acc": "1"}}, "holds scores that are not numbers"),
        ({"scores": {}}, "holds no score 'acc'"),
        ({"ties": {"acc": 1}}, "holds ties that are not true or false"),
        ({"chance": None}, "holds no valid 'chance'"),
        ({"weights": {"acc": 0}}, "holds no valid 'weights'"),
        ({"weights": [1]}, "holds no valid 'weights'"),
        ({"by_kind": {"max_words": 1.0}}, "holds no valid 'by_kind'"),
        ({"by_kind": {"metric": "rule_acc", "scores": {"max_words": "1"}}}, "holds no valid 'by_kind'"),
    ],
)
def test_error_of_a_bad_record_names_file_and_line(tmp_path, line, words):
    text = line if isinstance(line, str) else json.dumps({**RECORDS[0], **line})
    (tmp_path / "arc.ne.jsonl").write_text(f"{json.dumps(RECORDS[1])}\n{text}\n")
    message = error_of(RecordFile(tmp_path, "arc", "ne").done, ("acc",))
    assert message.startswith(f"{tmp_path / 'arc.ne.jsonl'}:2: ")
    assert words in message


def test_results_without_records_are_refused(tmp_path):
    make_output(tmp_path)
    (tmp_path / "arc.hi.jsonl").unlink()
    assert "has results of arc.hi but no records: restore arc.hi.jsonl" in error_of(read_runs, [str(tmp_path)], False)
