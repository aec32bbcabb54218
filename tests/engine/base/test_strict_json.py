"""Strict JSON: what is refused, the messages, and linear time for hostile texts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.strict_json import MAX_DEPTH, TooDeep, parse, parse_whole, read_object, shown_size

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES, st.sampled_from(["", " ", "\n\t"]))
def test_parse_agrees_with_the_json_module(value, blanks):
    text = json.dumps(value, ensure_ascii=False)
    assert parse(blanks + text, len(blanks)) == (json.loads(text), len(blanks + text))
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert parse_whole(blanks + text + blanks) == json.loads(text)


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}"), ('[{"[":', "}]")])
def test_depth_is_limited_and_number_of_brackets_is_not(opened, closed):
    levels = opened.replace('"["', "").count("[") + opened.count("{")
    times = MAX_DEPTH // levels
    parse_whole(opened * times + "1" + closed * times)
    with pytest.raises(TooDeep, match="nested deeper than 100") as caught:
        parse_whole('{"s": "[[[{{{",\n"deep": ' + opened * times + "1" + closed * times + "}")
    assert caught.value.lineno == 2
    with pytest.raises(TooDeep) as caught:
        parse_whole("\n\n" + opened * 100_000)
    assert caught.value.lineno == 3
    assert len(parse_whole("[" + ",".join(["[]"] * 1000) + "]")) == 1000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "line 1: Expecting value"),
        (b'{"a": 1}\n{"b": 2}', "line 2: more text after the value"),
        (b'{"a": NaN}', "NaN is not a JSON value"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "field 'c' is given twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{\n"a": "\xff"}', "line 2: byte 0xff is not UTF-8"),
        (b'{"a": "\\ud83d"}', "a text holds half a surrogate pair"),
        (b'{"a\x00": 1}', "line 1: Invalid control character"),
        (b"[1]", "must hold one JSON object, not list"),
        (b'{"a":\n' + b"[" * 5000, "line 2: nested deeper than 100"),
        (b'{"a": "' + b"x" * 100 + b'"}', "is above 100 bytes"),
    ],
)
def test_bad_file_is_one_line_with_line_number_and_limit(tmp_path, data, words):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    limit_bytes = 100 if b"xxx" in data else 10_000
    with pytest.raises(UserError) as caught:
        read_object(path, "fix it", limit_bytes, "--flag")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"--flag {path} ")
    assert str(caught.value).endswith(": fix it")
    assert "\n" not in str(caught.value)


def test_missing_file_or_directory_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / "a\0b"):
        with pytest.raises(UserError, match="cannot be read"):
            read_object(path)


def test_byte_order_mark_and_escaped_characters_are_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf {"a": "\\ud83d\\ude00 \\u0000"}\n')
    assert read_object(tmp_path / "x.json") == {"a": "😀 \0"}


def test_duplicate_key_is_found_in_linear_time():
    """200,000 keys: comparing each key with all others would take minutes."""
    text = "{" + ",".join(f'"{i}":0' for i in range(200_000)) + ',"199999":1}'
    with pytest.raises(ValueError, match="'199999' is given twice"):
        parse_whole(text)


def test_shown_size_uses_the_largest_whole_unit():
    assert [shown_size(n) for n in (64 * 2**20, 2**30, 3 * 2**10, 1000)] == ["64 MiB", "1 GiB", "3 KiB", "1000 bytes"]
