"""Records: what is read, what is refused, the messages, and that a failed write keeps the old file."""

import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine.base.jsonl
from engine.base.errors import UserError
from engine.base.records import (
    InstructionRecord,
    RankingRecord,
    read_instructions,
    read_rankings,
    read_records,
    write_jsonl,
)

TASK = {"instruction": "Add", "input": "1 2", "output": "3"}
RANKED = {"instruction": "Greet", "input": "", "responses": ["hi", "hello", "no"], "ranks": [1, 1, 2]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(read, path, **options):
    with pytest.raises(UserError) as caught:
        list(read(path, **options))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_jsonl_gzip_and_json_list_read_the_same(tmp_path):
    rows = [{**TASK, "id": "a"}, {**TASK, "output": "तीन"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\n"))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "x.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    expected = [InstructionRecord("a", "Add", "1 2", "3"), InstructionRecord("2", "Add", "1 2", "तीन")]
    for name in ("x.jsonl", "x.jsonl.gz", "x.json"):
        assert list(read_instructions(tmp_path / name)) == expected
    assert [line for line, _ in read_records(tmp_path / "x.jsonl")] == [1, 3]
    assert [line for line, _ in read_records(tmp_path / "x.json")] == [2, 8]


def test_missing_file_raises_before_iteration(tmp_path):
    for read in (read_records, read_instructions, read_rankings):
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / "absent.jsonl")


def test_records_are_read_lazily(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(TASK) + "\nbroken\n")
    records = read_instructions(path)
    assert next(records).output == "3"
    with pytest.raises(UserError, match=":2:"):
        next(records)


def test_prompts_need_no_output(tmp_path):
    path = write(tmp_path / "x.jsonl", {"instruction": "Add", "input": ""}, {**TASK, "output": ""})
    assert [record.output for record in read_instructions(path, require_output=False)] == ["", ""]
    assert ":1: field 'output' is missing" in refusal(read_instructions, path)


def test_on_bad_record_skips_and_reports(tmp_path):
    path = write(tmp_path / "x.jsonl", TASK, {**TASK, "output": " "}, TASK)
    errors = []
    records = list(read_instructions(path, on_bad_record=errors.append))
    assert [record.id for record in records] == ["1", "3"]
    assert [str(error).split(": ")[1] for error in errors] == ["field 'output' is empty (' ')"]
    path.write_text(json.dumps(TASK) + "\n{]\n")
    refusal(read_instructions, path, on_bad_record=errors.append)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instruction": None}, "field 'instruction' is None: it must be a string"),
        ({"instruction": 7}, "field 'instruction' is 7: it must be a string"),
        ({"instruction": " \n"}, "field 'instruction' is empty (' \\n'): fill it"),
        ({"input": ["x"]}, "field 'input' is ['x']: it must be a string"),
        ({"output": ""}, "field 'output' is empty"),
        ({"output": None}, "field 'output' is None"),
        ({"output": "\ud83d"}, "field 'output' holds half a surrogate pair, '\\ud83d', at character 1"),
        ({"id": ""}, "field 'id' is empty"),
        ({"id": True}, "field 'id' is True"),
        ({"id": 1.5}, "field 'id' is 1.5"),
    ],
)
def test_bad_field_is_named(tmp_path, change, words):
    path = write(tmp_path / "x.jsonl", TASK, {**TASK, **change})
    assert f"{path}:2: {words}" in refusal(read_instructions, path)


def test_missing_field_lists_present_fields(tmp_path):
    path = write(tmp_path / "x.jsonl", {"instruction": "Add", "Input": "", "output": "3"})
    message = refusal(read_instructions, path)
    assert "field 'input' is missing (fields: 'instruction', 'Input', 'output')" in message


def test_long_value_is_shortened_in_message(tmp_path):
    message = refusal(read_instructions, write(tmp_path / "x.jsonl", {**TASK, "output": ["x" * 10_000] * 100}))
    assert len(message) < 800


def test_ids_are_unique(tmp_path):
    path = write(tmp_path / "x.jsonl", {**TASK, "id": 7}, TASK, {**TASK, "id": "7"})
    assert ":3: id '7' is that of line 1" in refusal(read_instructions, path)
    path = write(tmp_path / "x.jsonl", {**TASK, "id": "2"}, TASK)
    assert ":2: id '2' is that of line 1" in refusal(read_instructions, path)


def test_every_ranking_format_reads(tmp_path):
    dialog = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: go\n\nAssistant:"
    path = write(
        tmp_path / "x.jsonl",
        {**RANKED, "id": "k"},
        {"instruction": "Q", "input": "i", "prefered_output": "good", "rejected_output": ""},
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"chosen": f"{dialog} Sure.", "rejected": f"{dialog} Sorry.\n\nHuman: why?\n\nAssistant: x"},
    )
    assert list(read_rankings(path)) == [
        RankingRecord("k", "Greet", "", ("hi", "hello", "no"), (1, 1, 2)),
        RankingRecord("2", "Q", "i", ("good", ""), (1, 2)),
        RankingRecord("3", "Q", "", ("good", "bad"), (1, 2)),
        RankingRecord("4", dialog.strip(), "", ("Sure.", "Sorry.\n\nHuman: why?\n\nAssistant: x"), (1, 2)),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**RANKED, "responses": []}, "field 'responses' holds 0: give at least 2"),
        ({**RANKED, "responses": ["hi"], "ranks": [1]}, "field 'responses' holds 1: give at least 2"),
        ({**RANKED, "responses": "hi"}, "field 'responses' is 'hi': it must be a list of strings"),
        ({**RANKED, "responses": ["hi", None, "no"]}, "field 'responses[1]' is None: it must be a string"),
        ({**RANKED, "ranks": [1, 2]}, "field 'ranks' holds 2 for 3 responses"),
        ({**RANKED, "ranks": [2, 2, 2]}, "field 'ranks' is 2 for every response, which trains nothing"),
        ({**RANKED, "ranks": [1, 0, 2]}, "field 'ranks[1]' is 0: a rank is a whole number from 1"),
        ({**RANKED, "ranks": [1, 2, 3.0]}, "field 'ranks[2]' is 3.0: a rank is a whole number"),
        ({**RANKED, "ranks": [1, True, 3]}, "field 'ranks[1]' is True"),
        ({**RANKED, "ranks": [1, "2", 3]}, "field 'ranks[1]' is '2'"),
        ({**RANKED, "responses": ["hi"] * 3}, "all responses are the same text, which trains nothing"),
        ({"instruction": "Greet", "input": "", "responses": ["a", "b"]}, "field 'ranks' is missing"),
        ({"prompt": "Q", "chosen": "good"}, "field 'rejected' is missing"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "field 'prompt' is [{'role': 'user'}]"),
        ({"chosen": "yes", "rejected": "no"}, "share no '\\n\\nAssistant:' turn"),
        (TASK, "no field holds responses (fields: 'instruction', 'input', 'output')"),
    ],
)
def test_bad_ranking_is_named(tmp_path, row, words):
    path = write(tmp_path / "x.jsonl", row)
    assert f"{path}:1: " in (message := refusal(read_rankings, path))
    assert words in message


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.jsonl", b"", "holds no records"),
        ("x.jsonl", b"\n \n", "holds no records"),
        ("x.json", b" ", "holds no records"),
        ("x.json", b"[ ]", "holds no records"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}', ":2: byte 0xff is not UTF-8"),
        ("x.json", b'[{"a": 1},\n{"a": "\xff"}]', ":2: byte 0xff is not UTF-8"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16"), ":1: byte 0xff is not UTF-8"),
        ("x.jsonl", b'{"a": 1}\n{"a": 1', ":2: column 8: bad JSON"),
        ("x.jsonl", b'{\n"a": 1}', ":1: column 2: bad JSON"),
        ("x.jsonl", b'[\n{"a": 1}]', "name the file .json if it is one list"),
        ("x.jsonl", b'{"a": 1} {"a": 2}', ":1: column 10: more text after the record"),
        ("x.jsonl", b'{"a": NaN}', ":1: bad JSON (NaN is not a JSON value)"),
        ("x.jsonl", b'{"a": -Infinity}', "-Infinity is not a JSON value"),
        ("x.jsonl", b'{"a": 1, "b": 1, "a": 2}', ":1: bad JSON (field 'a' is given twice)"),
        ("x.jsonl", b'{"a": ' + b"1" * 5000 + b"}", ":1: bad JSON (Exceeds the limit"),
        (
            "x.jsonl",
            b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            ":1: column 106: bad JSON (nested deeper than 100)",
        ),
        ("x.jsonl", b"[1]", ":1: the record is a list: it must be an object"),
        ("x.jsonl", b"null", ":1: the record is null"),
        ("x.json", b'[{"a": 1},\n\n7]', ":3: the record is a number"),
        ("x.json", b'{"a": 1}', "name it .jsonl if it has one record a line"),
        ("x.json", b'[{"a": 1}\n{"a": 1}]', ":2: expected ',' or ']'"),
        ("x.json", b'[{"a": 1},\n{"a"', ":2: column 5: bad JSON"),
        ("x.json", b'[{"a": 1},\n', "bad JSON"),
        ("x.json", b'[{"a": 1}]\n[]', ":2: more text after the list"),
        ("x.jsonl.gz", b"plain", "the gzip file is damaged"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "the gzip file is damaged or was cut short"),
        ("x.csv", b"a,b", "records come in .jsonl, .jsonl.gz or .json files"),
    ],
)
def test_damaged_file_is_refused_with_line_number(tmp_path, name, data, words):
    path = tmp_path / name
    path.write_bytes(data)
    assert words in refusal(read_records, path)


def test_directory_and_unreadable_file_are_refused(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    assert "it is a directory" in refusal(read_records, tmp_path / "d.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    assert "cannot read" in refusal(read_records, tmp_path / "loop.jsonl")


def test_line_and_list_sizes_are_limited(tmp_path, monkeypatch):
    path = write(tmp_path / "x.jsonl", {"a": "x" * 100})
    monkeypatch.setattr(engine.base.jsonl, "MAX_LINE_BYTES", 50)
    assert ":1: the line is above" in refusal(read_records, path)
    (tmp_path / "x.json").write_text(json.dumps([{"a": "x" * 100}]))
    monkeypatch.setattr(engine.base.jsonl, "MAX_LIST_BYTES", 50)
    assert "convert the list to .jsonl" in refusal(read_records, tmp_path / "x.json")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FULL_TEXTS = TEXTS.filter(str.strip)


@given(rows=st.lists(st.tuples(FULL_TEXTS, TEXTS, FULL_TEXTS), min_size=1, max_size=5), packed=st.booleans())
def test_written_records_read_back(tmp_path_factory, rows, packed):
    path = tmp_path_factory.mktemp("written") / ("x.jsonl.gz" if packed else "x.jsonl")
    records = [InstructionRecord(str(i), *row) for i, row in enumerate(rows)]
    write_jsonl(path, records)
    assert list(read_instructions(path)) == records


def test_equal_rows_give_equal_bytes(tmp_path):
    record = RankingRecord("1", "Q", "", ("a", "b"), (1, 2))
    for name in ("a.jsonl.gz", "deep/er/b.jsonl.gz"):
        write_jsonl(tmp_path / name, [record])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "deep/er/b.jsonl.gz").read_bytes()
    assert (tmp_path / "a.jsonl.gz").read_bytes()[3:8] == bytes(5), "the gzip header holds a file name or a time"
    assert list(read_rankings(tmp_path / "a.jsonl.gz")) == [record]


def failing_rows():
    yield {"a": 1}
    raise RuntimeError("the source broke")


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (failing_rows, RuntimeError),
        (lambda: [{"a": 1}, {"a": float("nan")}], UserError),
        (lambda: [{"a": 1}, {"a": "\ud83d"}], UserError),
    ],
)
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_failed_write_keeps_the_old_file(tmp_path, name, rows, error):
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_jsonl(path, rows())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [name]


def test_impossible_write_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"must end in \.jsonl or \.jsonl\.gz"):
        write_jsonl(tmp_path / "x.json", [])
    with pytest.raises(UserError, match="cannot write"):
        write_jsonl(tmp_path / "file" / "x.jsonl", [{"a": 1}])


def test_published_files_read(real_data):
    assert sum(1 for _ in read_instructions(real_data / "okapi_ne" / "sft.jsonl")) == 1333
    assert max(len(record.ranks) for record in read_rankings(real_data / "okapi_vi" / "ranking.jsonl")) == 20
    pairs = list(read_rankings(real_data / "hh_rlhf_harmless_test.jsonl.gz"))
    assert len(pairs) == 2312
    assert all(pair.instruction.endswith("Assistant:") for pair in pairs)
    errors = []
    assert sum(1 for _ in read_instructions(real_data / "alpaca_zh.jsonl.gz", on_bad_record=errors.append)) == 17467
    assert len(errors) == 8
