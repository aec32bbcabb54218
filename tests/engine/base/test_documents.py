"""Documents of pretraining text: records and plain text, and mistakes with file and line."""

import gzip
import json

import pytest

from engine.base.documents import read_documents
from engine.base.errors import UserError


def test_plain_text_is_split_at_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeff\n\none\n two\n\n \t\n\nतीन\n\n\n", encoding="utf-8")
    assert list(read_documents(str(path))) == ["one\n two", "तीन"]


def test_compressed_text_and_windows_line_ends(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("one\r\n two\r\n\r\nतीन".encode()))
    assert list(read_documents(str(tmp_path / "a.txt.gz"))) == ["one\n two", "तीन"]


def test_text_is_read_a_document_at_a_time(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"one\n\n" + b"x" * 90 + b"\n\xff")
    documents = read_documents(str(tmp_path / "a.txt"))
    assert next(documents) == "one"
    monkeypatch.setattr("engine.base.documents.MOST_BYTES", 80)
    with pytest.raises(UserError, match="the document at byte 5 is above 0 MiB: put a blank line between documents"):
        next(documents)


def test_records_have_a_text(tmp_path):
    rows = "".join(json.dumps(row) + "\n" for row in ({"text": "one\n\ntwo", "id": 7}, {"text": " x"}))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    assert list(read_documents(str(tmp_path / "a.jsonl.gz"))) == ["one\n\ntwo", " x"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', "a.jsonl:2: field 'text' is missing"),
        ("a.jsonl", b'{"text": " "}\n', "a.jsonl:1: field 'text' is empty"),
        ("a.jsonl", b"\n", "a.jsonl holds no records"),
        ("a.txt", b" \n\n", "a.txt holds no text"),
        ("a.txt", b"x\xff", "a.txt: byte 1 is not UTF-8"),
        ("a.txt", b"one\n\ntwo\n x\xff", "a.txt: byte 11 is not UTF-8"),
        ("a.txt", b"\xef\xbb\xbfx\xff", "a.txt: byte 4 is not UTF-8"),
        ("a.txt.gz", gzip.compress(b"x", mtime=0)[:-4], "a.txt.gz: the gzip file is damaged or was cut short"),
        ("a.md", b"x", "cannot read .*a.md: text comes in .txt, .jsonl"),
        ("a.txt", None, "cannot read .*a.txt: No such file"),
        ("a.jsonl", None, "cannot read .*a.jsonl: there is no such file"),
    ],
)
def test_mistake_is_named(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        list(read_documents(str(tmp_path / name)))
