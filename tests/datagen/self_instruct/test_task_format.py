"""The task format: round trip, and a reason for each dropped part."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.self_instruct.task_format import Task, format_tasks, parse_tasks

_TEXT = st.text(st.characters(codec="utf-8")) | st.sampled_from(["```", '{"number": 2}', "5.", "\n### 3\nInput:", "]"])
_INPUT = _TEXT.filter(lambda text: text.strip().lower() != "<noinput>")
_TASKS = st.lists(st.builds(Task, _TEXT, _INPUT, _TEXT), min_size=1, max_size=6)
A, B = Task("Name a fruit.", "", "A pear."), Task("Add.", "2 and 3", "5")


@given(_TASKS, st.integers(1, 50))
def test_round_trip(tasks, first):
    parsed = parse_tasks(format_tasks(tasks, first), first, len(tasks))
    assert parsed.tasks == list(enumerate(tasks, first))
    assert parsed.dropped == []


@given(_TASKS, st.sampled_from(["```\n{}\n```", "```json\n{}\n```", "```jsonl\n{}\n```\n", "\n\n{}\n", "[{}]"]))
def test_fences_and_list_brackets_are_skipped(tasks, around):
    body = format_tasks(tasks)
    if around == "[{}]":
        body = body.replace("\n", ",\n")
    assert parse_tasks(around.replace("{}", body), 1, len(tasks)) == parse_tasks(format_tasks(tasks), 1, len(tasks))


@given(_TASKS, st.data())
def test_cut_answer_loses_only_its_last_task(tasks, data):
    body = format_tasks(tasks)
    cut = body[: data.draw(st.integers(1, len(body)))]
    whole = sum(
        body.startswith(format_tasks(tasks[: n + 1])) and len(format_tasks(tasks[: n + 1])) <= len(cut)
        for n in range(len(tasks))
    )
    parsed = parse_tasks(cut, 1, len(tasks), was_cut=True)
    assert parsed.tasks == list(enumerate(tasks[:whole], 1))
    assert [reason for reason, _ in parsed.dropped] in ([], ["cut off"])


@given(_TASKS, st.integers(0, 5), st.sampled_from(["number", "instruction", "input", "output"]))
def test_missing_field_drops_only_its_task(tasks, which, name):
    which %= len(tasks)
    lines = format_tasks(tasks).split("\n")
    fields = json.loads(lines[which])
    del fields[name]
    lines[which] = json.dumps(fields)
    parsed = parse_tasks("\n".join(lines), 1, len(tasks))
    assert parsed.tasks == [(n, task) for n, task in enumerate(tasks, 1) if n != which + 1]
    assert parsed.dropped == [(f"without {name}", lines[which])]


@given(st.text())
def test_any_text_is_parsed(text):
    parsed = parse_tasks(text, 1, 20)
    assert parsed.tasks == []
    for _, part in parsed.dropped:
        assert part in text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"number": 1, "instruction": "a", "input": "", "output": "b"}', "number out of order"),
        ('{"number": 4, "instruction": "a", "input": "", "output": "b"}', "more than were asked for"),
        ('{"number": "2", "instruction": "a", "input": "", "output": "b"}', "number is no whole number"),
        ('{"number": true, "instruction": "a", "input": "", "output": "b"}', "number is no whole number"),
        ('{"number": 2, "instruction": ["a"], "input": "", "output": "b"}', "a field is no string"),
        ('{"number": 2, "instruction": "a", "input": null, "output": "b"}', "a field is no string"),
        ('{"number": 2, "instruction": "a", "input": "", "output": "b", "why": "c"}', "unknown field 'why'"),
        ('{"number": 2, "instruction": "a", "input": "", "output": "b \\ud83d"}', "half a surrogate pair"),
        ('{"number": 2, "number": 2, "instruction": "a", "input": "", "output": "b"}', "not JSON"),
        ('{"number": 2, "instruction": "a "b"", "input": "", "output": "c"}', "not JSON"),
        ('{"number": 2, "instruction": "a', "not JSON"),
        ("Here are some more:", "text that is no task"),
        ("2. Name a fruit.", "text that is no task"),
        ("[" * 100_000, None),
        ('{"a":' * 100_000, "not JSON"),
    ],
)
def test_invalid_task_is_dropped_with_a_reason(line, reason):
    text = "\n".join([format_tasks([A], 1), line, format_tasks([B], 3)])
    parsed = parse_tasks(text, 1, 3)
    assert parsed.tasks == [(1, A), (3, B)]
    assert [why for why, _ in parsed.dropped] == ([reason] if reason else [])


def test_noinput_becomes_an_empty_input():
    line = '{"number": 1, "instruction": "a", "input": " <NoInput> ", "output": "b"}'
    assert parse_tasks(line, 1, 1).tasks == [(1, Task("a", "", "b"))]


def test_unknown_empty_field_is_allowed():
    line = '{"number": 1, "instruction": "a", "input": "", "output": "b", "note": "", "lang": null}'
    assert parse_tasks(line, 1, 1).tasks == [(1, Task("a", "", "b"))]


def test_cut_off_and_invalid_json_have_different_reasons():
    assert parse_tasks('{"number": 1, "instr', 1, 1, was_cut=True).dropped == [("cut off", '{"number": 1, "instr')]
    assert parse_tasks('{"number": 1, "instr', 1, 1).dropped[0][0] == "not JSON"
