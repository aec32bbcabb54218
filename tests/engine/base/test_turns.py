"""Conversations in records: both forms, what becomes of the turns, every mistake with line and field, writing back."""

import json

import pytest

from engine.base.errors import UserError
from engine.base.records import read_instructions, read_rankings, write_jsonl
from engine.base.turns import Turn

TALK = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Two?"), ("assistant", "2")]
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def sharegpt(*turns):
    return [{"from": NAMES[role], "value": content} for role, content in turns]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_both_forms_read_the_same(tmp_path):
    path = write(
        tmp_path / "x.jsonl", {"id": "a", "messages": messages(*TALK)}, {"id": "b", "conversations": sharegpt(*TALK)}
    )
    for record in read_instructions(path):
        assert (record.instruction, record.input, record.output) == ("Two?", "", "2")
        assert record.history == tuple(Turn(*turn) for turn in TALK[:3])
    one = write(tmp_path / "one.jsonl", {"messages": messages(*TALK[1:3])})
    (record,) = read_instructions(one)
    assert record.history == () and record.prompt == ((), "Hi", "")


def test_an_instruction_goes_before_messages(tmp_path):
    row = {"instruction": "Add", "input": "", "output": "3", "messages": "no list"}
    assert next(read_instructions(write(tmp_path / "x.jsonl", row))).instruction == "Add"


def test_prompts_may_end_with_either(tmp_path):
    path = write(tmp_path / "x.jsonl", {"messages": messages(*TALK[:4])}, {"messages": messages(*TALK)})
    records = list(read_instructions(path, require_output=False))
    assert [record.output for record in records] == ["", "2"]
    assert records[0].prompt == records[1].prompt != ((), "Two?", "")
    with pytest.raises(UserError, match=r"x.jsonl:1: field 'messages' ends with the user's message: add the answer"):
        list(read_instructions(path))


@pytest.mark.parametrize("fields", [
    {"responses": ["2", "3"], "ranks": [1, 2]}, {"chosen": "2", "rejected": "3"},
    {"prefered_output": "2", "rejected_output": "3"},
])  # fmt: skip
def test_rankings_have_a_history(tmp_path, fields):
    path = write(tmp_path / "x.jsonl", {"messages": messages(*TALK[:4]), **fields})
    (record,) = read_rankings(path)
    assert (record.instruction, record.responses, record.ranks) == ("Two?", ("2", "3"), (1, 2))
    assert record.history == tuple(Turn(*turn) for turn in TALK[:3])
    path = write(tmp_path / "y.jsonl", {"messages": messages(*TALK), **fields})
    with pytest.raises(UserError, match=r"y.jsonl:1: field 'messages' ends with the assistant's message: end it"):
        list(read_rankings(path))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "field 'messages' is None: it must be a list of messages"),
        ([], "field 'messages' is []: it must be a list of messages"),
        (["Hi"], "field 'messages[0]' is 'Hi': it must be {'role': ..., 'content': ...}"),
        ([{"role": "user"}], "field 'messages[0].content' is missing (fields: 'role'): add it"),
        ([{"from": "human", "value": "Hi"}], "field 'messages[0].role' is missing (fields: 'from', 'value')"),
        (messages(("tool", "Hi")), "field 'messages[0].role' is 'tool': give system, user, assistant"),
        (messages(("user", "Hi"), (["a"], "b")), "field 'messages[1].role' is ['a']: give system"),
        (messages(("assistant", "Hi")), "field 'messages[0].role' is 'assistant': the user speaks first"),
        (messages(*TALK[:1], ("assistant", "Hi")), "field 'messages[1].role' is 'assistant': the user speaks first"),
        (messages(("user", "a"), ("user", "b")), "field 'messages[1].role' is 'user' twice in a row"),
        (messages(*TALK, ("assistant", "b")), "field 'messages[5].role' is 'assistant' twice in a row"),
        (messages(*TALK, ("system", "b")), "field 'messages[5].role' is 'system': a system message comes first"),
        (messages(TALK[0], TALK[0]), "field 'messages[1].role' is 'system': a system message comes first"),
        (messages(TALK[0]), "field 'messages' has no message of the user"),
        (messages(("user", "Hi")), "field 'messages' ends with the user's message"),
        (messages(("user", "Hi"), ("assistant", " \n")), "field 'messages[1].content' is empty (' \\n'): fill it"),
        (messages(("user", 7)), "field 'messages[0].content' is 7: it must be a string"),
        (messages(("user", "\ud83d")), "field 'messages[0].content' holds half a surrogate pair"),
    ],
)
def test_mistake_is_named(tmp_path, value, words):
    path = write(tmp_path / "x.jsonl", {"messages": messages(*TALK)}, {"messages": value})
    with pytest.raises(UserError) as caught:
        list(read_instructions(path))
    assert f"{path}:2: {words}" in str(caught.value) and "\n" not in str(caught.value)
    skipped = []
    assert len(list(read_instructions(path, on_bad_record=skipped.append))) == len(skipped) == 1


def test_sharegpt_mistakes_say_its_fields(tmp_path):
    path = write(tmp_path / "x.jsonl", {"conversations": [{"from": "user", "value": "Hi"}]})
    with pytest.raises(UserError, match=r"field 'conversations\[0\].from' is 'user': give system, human, gpt"):
        list(read_instructions(path))


def test_what_is_written_reads_the_same(tmp_path):
    path = write(
        tmp_path / "x.jsonl", {"id": "a", "messages": messages(*TALK)}, {"instruction": "b", "input": "", "output": "c"}
    )
    records = list(read_instructions(path))
    write_jsonl(tmp_path / "y.jsonl", records)
    assert list(read_instructions(tmp_path / "y.jsonl")) == records
    assert "history" not in (tmp_path / "y.jsonl").read_text()
    ranking = {"id": "a", "messages": messages(*TALK[:4]), "responses": ["2", "3"], "ranks": [1, 2]}
    rankings = list(read_rankings(write(tmp_path / "r.jsonl", ranking)))
    write_jsonl(tmp_path / "s.jsonl", rankings)
    assert list(read_rankings(tmp_path / "s.jsonl")) == rankings
