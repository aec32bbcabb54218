"""Run a command: its files, --dry-run, the progress line, Ctrl-C and the final summary."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datagen.api.chat import Record, Work
from datagen.api.settings import ApiSettings, api_settings
from datagen.run.dry_run import print_plan
from datagen.run.progress import Progress, clock
from datagen.run.runner import Review, Summary, run
from datagen.run.session import Outcome, Session
from datagen.sources import check_writable
from engine.base.errors import UserError

INTERRUPTED = "interrupted"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class RunFiles:
    """The file paths of a run."""

    output: Path
    journal: Path
    quarantine: Path


def run_files(args: argparse.Namespace) -> RunFiles:
    """Return the files for --output and the flags of `add_api_arguments`.

    UserError if two paths are equal, a file cannot be created, or the output exists without its journal.
    """
    output: Path = args.output
    journal = args.journal or output.with_name(f"{output.name}.journal")
    quarantine = args.quarantine or output.with_name(f"{output.name}.quarantine.jsonl")
    for flag, path in (("--output", output), ("--journal", journal), ("--quarantine", quarantine)):
        check_writable(flag, path)
    if len({path.absolute() for path in (output, journal, quarantine)}) < 3:
        raise UserError(f"--output {output}, the journal and the quarantine must be three files: use different names")
    if output.exists() and not journal.exists():
        raise UserError(f"--output {output} exists, but not the journal {journal}: choose another, or delete it")
    return RunFiles(output, journal, quarantine)


def run_command(
    records: Sequence[Record],
    work: Work,
    args: argparse.Namespace,
    group_of: Callable[[Record], str] = lambda _: "all",
    review: Review | None = None,
) -> Summary | None:
    """Run the command and return its summary. With --dry-run, print the plan and return None.

    args: from a parser with `add_api_arguments` and --output FILE.
    group_of: maps a record to its row in the plan, for example its language. review: see `runner.run`.
    UserError if the run stops early, after writing the finished rows. Exits with status 130 after Ctrl-C.
    """
    settings, files = api_settings(args), run_files(args)
    if args.dry_run:
        print_plan(records, work, settings, files.journal, group_of)
        return None
    summary = asyncio.run(_watched_run(records, work, settings, files, review))
    print(describe(summary, files, len(records)), file=sys.stderr)
    if summary.stopped == INTERRUPTED:
        raise SystemExit(130)
    if summary.stopped:
        raise UserError(summary.stopped)
    return summary


def require_rows(summary: Summary | None, output: Path) -> None:
    """Raise UserError if a complete run wrote no rows: the next step would have no input."""
    if summary is None or summary.rows:
        return
    if summary.rejected:
        advice = "fix that, then run again with --retry-quarantined"
        why = f"{summary.rejected:,} of {summary.records:,} records were rejected, the first: {summary.first_rejection}"
        raise UserError(f"no rows in {output}: {why}: {advice}")
    if summary.records:
        raise UserError(f"no rows in {output}: none of {summary.records:,} records was rejected, but none was kept")
    raise UserError(f"no rows in {output}: there were no records to process")


async def _watched_run(
    records: Sequence[Record], work: Work, settings: ApiSettings, files: RunFiles, review: Review | None = None
) -> Summary:
    with Watch(len(records)) as watch:
        paths = (files.journal, files.output, files.quarantine)
        callbacks = {"log": watch.log, "on_start": watch.start, "on_outcome": watch.add}
        return await run(records, work, settings, *paths, **callbacks, review=review)


class Watch:
    """Shows the progress line and handles signals, from `start` to the end of the `with` block.

    total: the number of records, or None if unknown.
    """

    def __init__(self, total: int | None) -> None:
        self.progress: Progress | None = None
        self._total = total
        self._session: Session | None = None

    def __enter__(self) -> Watch:
        return self

    def start(self, session: Session) -> None:
        """Show the session's progress. From now on Ctrl-C and SIGTERM drain the session."""
        self._session, self.progress = session, Progress(session, self._total)
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.interrupt)

    def __exit__(self, *_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()
            for number in _SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)

    def add(self, outcome: Outcome) -> None:
        """Count a finished record."""
        if self.progress is not None:
            self.progress.add(outcome)

    def log(self, line: str) -> None:
        """Print a separate line to standard error."""
        if self.progress is None:
            print(line, file=sys.stderr)
        else:
            self.progress.log(line)

    def interrupt(self) -> None:
        """Handle Ctrl-C: drain the session the first time, abort requests in flight the second time."""
        assert self._session is not None
        if self._session.stopped:
            self._session.abort()
        else:
            count = self._session.counts.in_flight
            self.log(f"interrupted: waiting for {count} answers in flight; press Ctrl-C again to abort them")
            self._session.drain(INTERRUPTED)


def describe(summary: Summary, files: RunFiles, total: int) -> str:
    """Format the summary for the console."""
    lines = [
        f"{summary.records:,} of {total:,} records: {summary.rows:,} rows in {files.output}",
        f"{summary.asked:,} answers in {clock(summary.seconds)} (and {summary.replayed:,} from the journal, "
        f"{summary.retries:,} retries), {sum(summary.tokens):,} tokens, ${summary.usd:.4f}",
    ]
    if summary.rejected:
        advice = "retry them with --retry-quarantined"
        lines.append(f"{summary.rejected:,} rejected, reasons in {files.quarantine}: {advice}")
    if summary.maybe_usd:
        lines.append(f"up to ${summary.maybe_usd:.4f} more for attempts that lost their answer")
    if summary.records < total:
        lines.append("not complete: run the same command again to continue, no answer is paid twice")
    return "\n".join(lines)
