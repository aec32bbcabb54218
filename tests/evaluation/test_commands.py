"""`python -m evaluation`: each command is found, and a misspelt one is named with its nearest."""

from __future__ import annotations

import pytest

from engine.base.errors import UserError
from evaluation import __main__ as commands


def test_help_lists_the_commands(capsys):
    commands.job([])
    said = capsys.readouterr().out
    assert all(name in said for name in commands.COMMANDS)


def test_a_misspelt_command_is_named():
    with pytest.raises(UserError, match=r"unknown command 'repport' \(did you mean report\?\): one of report, lint"):
        commands.job(["repport"])


def test_a_command_ends_with_its_own_status(monkeypatch):
    ran = []
    command = commands.Command("x", lambda arguments: ran.append(arguments) or 3)
    monkeypatch.setitem(commands.COMMANDS, "report", command)
    with pytest.raises(SystemExit) as stopped:
        commands.job(["report", "a", "b"])
    assert (stopped.value.code, ran) == (3, [["a", "b"]])
