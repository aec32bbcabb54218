"""`python -m engine.report runs/ne`: write one HTML page about one or several runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.base.errors import UserError
from engine.report.page import write_report
from engine.report.reading import read_run


def main(arguments: Sequence[str]) -> int:
    """Write the report. Exit status 0, or 2 with one line for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.report",
        description="One HTML file that needs no network: curves, answers before and after, evaluations, settings.",
        epilog="Runs that differ in their seed alone share a colour and have a mean.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, such as runs/ne")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where it goes (default: RUN/report.html)")
    options = parser.parse_args(arguments)
    try:
        output = options.output or options.runs[0] / "report.html"
        if output.is_dir():
            raise UserError(f"--output {output} is a folder: give a file, such as {output / 'report.html'}")
        write_report([read_run(path) for path in options.runs], output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
