"""`python -m datagen`: its output, and one line per user error."""

from __future__ import annotations

import re

import pytest

from datagen.__main__ import main


def _error(capsys, *argv):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_no_command_prints_all_commands_and_an_example(capsys, argv):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  embedded +write the data sets", out, re.MULTILINE)
    assert "example: python -m datagen embedded --lang ne" in out
    assert len(out.splitlines()) < 15


def test_command_help_is_short_and_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["embedded", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "example: python -m datagen embedded --lang ne" in out
    assert len(out.splitlines()) < 20


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["embeded"], "unknown command 'embeded' (did you mean embedded?)"),
        (["zzz"], "unknown command 'zzz': the commands are embedded"),
        (["embedded", "--langs", "ne"], "unknown flag --langs (did you mean --lang?)"),
        (["embedded", "--ouput=x"], "unknown flag --ouput (did you mean --output?)"),
        (["embedded"], "the following arguments are required: --lang, --output (see --help)"),
        (["embedded", "--lang"], "argument --lang: expected one argument (see --help)"),
        (["embedded", "--lang", "en", "--output", "x", "--size", "many"], "argument --size: invalid int value"),
        (["embedded", "--lang", "en", "--output", "x", "more"], "unrecognized arguments: more"),
    ],
)
def test_user_errors_are_one_line(capsys, argv, message):
    assert message in _error(capsys, *argv)


def test_unknown_language_suggests_the_nearest_and_writes_nothing(capsys, tmp_path):
    message = _error(capsys, "embedded", "--lang", "nepali", "--output", str(tmp_path / "out"))
    assert "did you mean 'ne'" in message
    assert not (tmp_path / "out").exists()


def test_embedded_prints_the_files_it_wrote(capsys, tmp_path):
    assert main(["embedded", "--lang", "en", "--output", str(tmp_path / "out"), "--size", "48"]) == 0
    out = capsys.readouterr().out
    assert f"48  {tmp_path / 'out' / 'sft.jsonl'}" in out
    assert "m_truthfulqa/en_validation.json" in out
    assert "is not empty" in _error(capsys, "embedded", "--lang", "en", "--output", str(tmp_path / "out"))


def test_folder_that_cannot_be_created_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    message = _error(capsys, "embedded", "--lang", "en", "--output", str(tmp_path / "file" / "out"), "--size", "48")
    assert "file" in message
