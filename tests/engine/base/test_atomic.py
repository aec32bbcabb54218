"""Atomic writes: the new file appears whole or not at all."""

from __future__ import annotations

import json
import os

import pytest

from engine.base.atomic import whole_file, whole_path, write_json, write_text


def test_json_is_written_and_no_other_file_is_left(tmp_path):
    write_json(tmp_path / "x.json", {"name": "नेपाली"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"name": "नेपाली"}
    assert os.listdir(tmp_path) == ["x.json"]


def test_error_while_writing_keeps_the_old_file(tmp_path):
    write_text(tmp_path / "x", "old\n")
    with pytest.raises(ValueError, match="stop"), whole_file(tmp_path / "x") as file:
        file.write(b"half")
        raise ValueError("stop")
    assert (tmp_path / "x").read_text() == "old\n" and os.listdir(tmp_path) == ["x"]


def test_old_file_stays_until_the_new_one_is_whole(tmp_path):
    write_text(tmp_path / "x", "old")
    with whole_file(tmp_path / "x", text=True) as file:
        file.write("new")
        file.flush()
        assert (tmp_path / "x").read_text() == "old"
    assert (tmp_path / "x").read_text() == "new"


def test_a_writer_that_takes_a_path_replaces_the_file_as_a_whole(tmp_path):
    write_text(tmp_path / "x", "old")
    with pytest.raises(ValueError, match="stop"), whole_path(tmp_path / "x") as path:
        path.write_text("half")
        raise ValueError("stop")
    assert (tmp_path / "x").read_text() == "old" and os.listdir(tmp_path) == ["x"]
    with whole_path(tmp_path / "x") as path:
        path.write_text("new")
        path.chmod(0o600)
        assert (tmp_path / "x").read_text() == "old"
    (tmp_path / "y").touch()
    assert (tmp_path / "x").read_text() == "new" and (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_content_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("engine.base.atomic.os.fsync", lambda _: calls.append("fsync"))
    replace = os.replace
    monkeypatch.setattr("engine.base.atomic.os.replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    write_text(tmp_path / "x", "new")
    assert calls == ["fsync", "replace", "fsync"]
