"""`python -m evaluation coverage`: print which languages each benchmark has, as a Markdown table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from engine.base.languages import LANGUAGES
from evaluation.data.sets import OKAPI, SETS
from evaluation.tasks import all_tasks


def table() -> str:
    """Return a table with a row per language of the paper and a column per folder of benchmark files."""
    folders = list(dict.fromkeys(sorted((task.folder for task in all_tasks().values()), key=list(SETS).index)))
    lines = ["| | " + " | ".join(folders) + " |", "|---" + "|:-:" * len(folders) + "|"]
    for code in OKAPI:
        marks = ("x" if code in SETS[folder].names else "" for folder in folders)
        lines.append(f"| {LANGUAGES[code].name} ({code}) | " + " | ".join(marks) + " |")
    counts = (str(len(set(OKAPI) & set(SETS[folder].names))) for folder in folders)
    return "\n".join([*lines, f"| languages of {len(OKAPI)} | " + " | ".join(counts) + " |"])


def main(arguments: Sequence[str]) -> int:
    """Print the table and return exit status 0."""
    description = "Which of the 26 languages each benchmark has."
    argparse.ArgumentParser(prog="python -m evaluation coverage", description=description).parse_args(arguments)
    print(table())
    return 0
