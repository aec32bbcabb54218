"""`python -m evaluation COMMAND`: finds the command, naming the nearest one to a misspelt word."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.base.errors import UserError
from engine.cli.parse import main, nearest
from evaluation import lint, report


class Command(NamedTuple):
    """What --help says about a command, and what runs it: arguments to exit status."""

    summary: str
    run: Callable[[Sequence[str]], int]


COMMANDS = {
    "report": Command("tables, paired differences and a picture of finished evaluations", report.main),
    "lint": Command("what is wrong or odd in a folder of benchmark files", lint.main),
}


def job(argv: Sequence[str]) -> None:
    """Run one command and leave with its status."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:8}{command.summary}" for name, command in COMMANDS.items()]
        print("\n".join(["usage: python -m evaluation COMMAND [--help]", "", *lines]))
        return
    name, *arguments = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, list(COMMANDS))}: one of {', '.join(COMMANDS)}")
    sys.exit(COMMANDS[name].run(arguments))


if __name__ == "__main__":
    main(job)
