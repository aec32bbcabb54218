"""`python -m evaluation`: help, exit statuses, and the suggestion for a misspelt command."""

from __future__ import annotations

import pytest

from engine.base.errors import UserError
from evaluation import __main__ as commands


def test_help_lists_the_commands(capsys):
    commands.job([])
    said = capsys.readouterr().out
    assert all(name in said for name in commands.COMMANDS)


def test_misspelt_command_gets_a_suggestion():
    message = r"unknown command 'repport' \(did you mean report\?\): choose from report, lint"
    with pytest.raises(UserError, match=message):
        commands.job(["repport"])


def test_exit_status_is_the_commands(monkeypatch):
    ran = []
    command = commands.Command("x", lambda arguments: ran.append(arguments) or 3)
    monkeypatch.setitem(commands.COMMANDS, "report", command)
    with pytest.raises(SystemExit) as stopped:
        commands.job(["report", "a", "b"])
    assert (stopped.value.code, ran) == (3, [["a", "b"]])
