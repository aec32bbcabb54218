"""A run from a command line: its files, --dry-run, the progress line, Ctrl-C, and the summary at the end."""

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
from datagen.sources import check_place
from engine.base.errors import UserError

INTERRUPTED = "interrupted"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps what."""

    output: Path
    journal: Path
    quarantine: Path


def run_files(args: argparse.Namespace) -> RunFiles:
    """The files of a command line with --output and the flags of `add_api_arguments`.

    UserError where two are the same file, one cannot be made, or an output would be replaced that has no journal.
    """
    output: Path = args.output
    journal = args.journal or output.with_name(f"{output.name}.journal")
    quarantine = args.quarantine or output.with_name(f"{output.name}.quarantine.jsonl")
    for flag, path in (("--output", output), ("--journal", journal), ("--quarantine", quarantine)):
        check_place(flag, path)
    if len({path.absolute() for path in (output, journal, quarantine)}) < 3:
        raise UserError(f"--output {output}, the journal and the quarantine must be three files: name them apart")
    if output.exists() and not journal.exists():
        raise UserError(f"--output {output} is there, but not the journal {journal}: choose another, or delete it")
    return RunFiles(output, journal, quarantine)


def run_command(
    records: Sequence[Record],
    work: Work,
    args: argparse.Namespace,
    group_of: Callable[[Record], str] = lambda _: "all",
    review: Review | None = None,
) -> Summary | None:
    """Does what a command's flags say: the plan for --dry-run (then None), otherwise the run and its summary.

    args: of a parser with `add_api_arguments` and --output FILE.
    group_of: the language of a record, for the rows of the plan. review: see `runner.run`.
    UserError after a run that could not finish (its finished rows are written); exit status 130 after Ctrl-C.
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
    """UserError where a whole run wrote not one row: whatever comes next has nothing to work on."""
    if summary is None or summary.rows:
        return
    if summary.rejected:
        advice = "fix that, then run again with --retry-quarantined"
        why = f"{summary.rejected:,} of {summary.records:,} records were rejected, the first: {summary.first_rejection}"
        raise UserError(f"not one row in {output}: {why}: {advice}")
    if summary.records:
        raise UserError(f"not one row in {output}: of {summary.records:,} records none was rejected, and none was left")
    raise UserError(f"not one row in {output}: there was no record to work on")


async def _watched_run(
    records: Sequence[Record], work: Work, settings: ApiSettings, files: RunFiles, review: Review | None = None
) -> Summary:
    with Watch(len(records)) as watch:
        paths = (files.journal, files.output, files.quarantine)
        told = {"tell": watch.tell, "on_start": watch.start, "on_outcome": watch.add}
        return await run(records, work, settings, *paths, **told, review=review)


class Watch:
    """The progress line and the signals of one session, from `start` to the end of the `with` block.

    total: the number of records, None where it is not known.
    """

    def __init__(self, total: int | None) -> None:
        self.progress: Progress | None = None
        self._total = total
        self._session: Session | None = None

    def __enter__(self) -> Watch:
        return self

    def start(self, session: Session) -> None:
        """Begins to show the session; Ctrl-C and SIGTERM drain it from now on."""
        self._session, self.progress = session, Progress(session, self._total)
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.interrupt)

    def __exit__(self, *_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()
            for number in _SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)

    def add(self, outcome: Outcome) -> None:
        """Counts a record that has ended."""
        if self.progress is not None:
            self.progress.add(outcome)

    def tell(self, line: str) -> None:
        """Prints a line of its own."""
        if self.progress is None:
            print(line, file=sys.stderr)
        else:
            self.progress.tell(line)

    def interrupt(self) -> None:
        """Ctrl-C: the first drains, the second gives up what is on its way."""
        assert self._session is not None
        if self._session.stopped:
            self._session.abort()
        else:
            count = self._session.counts.on_their_way
            self.tell(f"interrupted: waiting for {count} answers on their way; press Ctrl-C again to give them up")
            self._session.drain(INTERRUPTED)


def describe(summary: Summary, files: RunFiles, total: int) -> str:
    """What a run did, in a few lines."""
    lines = [
        f"{summary.records:,} of {total:,} records: {summary.rows:,} rows in {files.output}",
        f"{summary.asked:,} answers in {clock(summary.seconds)} ({summary.replayed:,} more from the journal, "
        f"{summary.retries:,} retries), {sum(summary.tokens):,} tokens, ${summary.usd:.4f}",
    ]
    if summary.rejected:
        advice = "try them again with --retry-quarantined"
        lines.append(f"{summary.rejected:,} rejected, with their reasons in {files.quarantine}: {advice}")
    if summary.maybe_usd:
        lines.append(f"at most ${summary.maybe_usd:.4f} more for attempts whose answer never came")
    if summary.records < total:
        lines.append("not complete: run the same command again to go on, nothing is asked twice")
    return "\n".join(lines)
