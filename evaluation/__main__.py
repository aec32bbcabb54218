"""`python -m evaluation COMMAND`: run a command, or suggest the nearest name for a misspelt one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.base.errors import UserError
from engine.base.nearest import nearest
from engine.cli.parse import main
from evaluation import coverage, lint, report


class Command(NamedTuple):
    """A command: its line in --help, and the function that runs it and returns the exit status."""

    summary: str
    run: Callable[[Sequence[str]], int]


COMMANDS = {
    "report": Command("tables, paired differences and a picture of finished evaluations", report.main),
    "lint": Command("find faults and oddities in a folder of benchmark files", lint.main),
    "coverage": Command("which of the 26 languages each benchmark has", coverage.main),
}


def job(argv: Sequence[str]) -> None:
    """Run one command and exit with its status. UserError for an unknown command."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:10}{command.summary}" for name, command in COMMANDS.items()]
        print("\n".join(["usage: python -m evaluation COMMAND [--help]", "", *lines]))
        return
    name, *arguments = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}: choose from {', '.join(COMMANDS)}")
    sys.exit(COMMANDS[name].run(arguments))


if __name__ == "__main__":
    main(job)
