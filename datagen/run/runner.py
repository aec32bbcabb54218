"""Run a work function over all records and write each result once, in input order.

A work function is `async def work(record, ask) -> list[record]`: it returns the output rows of one record. It calls

    reply = await ask(messages, temperature=0, max_tokens=500)

once per request (a dialog of two turns makes two calls) and raises `Rejected(reason)` for an unusable answer. `ask`
writes each answer to the journal, under the content hash of its request, before it returns. A request that is in the
journal is never sent again. So a restarted run reaches the same state after any number of kills, provided that `work`
is deterministic: no clock, and random numbers only from seeds in the record. Equal requests of one run are sent once;
pass `nonce=` to draw several answers.

    summary = await run(records, work, settings, journal, output, quarantine)     # writes two files
    async with Session(settings, journal) as session:                             # or: outcomes in input order
        async for outcome in session.outcomes(records, work): ...

datagen/run/command.py adds the command line: flags, --dry-run, Ctrl-C, the progress line.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datagen.api.chat import Ask, Record, Rejected, Reply, Work
from datagen.api.journal import Tokens
from datagen.api.settings import ApiSettings
from datagen.run.session import Outcome, Session
from engine.base.errors import UserError
from engine.base.strict_json import is_utf8

__all__ = [
    "ApiSettings",
    "Ask",
    "Outcome",
    "Record",
    "Rejected",
    "Reply",
    "Review",
    "Session",
    "Summary",
    "Work",
    "run",
]

# review(record, rows): check the rows of each record, in input order. It raises Rejected or removes rows from the list.
Review = Callable[[Record, list[Record]], None]


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    records     finished records; `rejected` of them are in the quarantine, the others gave `rows` rows
    asked       answers from the API in this run; `replayed` answers came from the journal
    retries     attempts without an answer
    tokens      paid in this run, for `usd`; `usd_of_all_runs` is the cost of all runs on the journal
    maybe_usd   upper bound on the further cost of attempts with an unknown end
    stopped     why the run stopped early, or None if it is complete
    first_rejection   the reason of the first rejected record, or None
    """

    records: int
    rejected: int
    rows: int
    asked: int
    replayed: int
    retries: int
    tokens: Tokens
    usd: float
    usd_of_all_runs: float
    maybe_usd: float
    seconds: float
    stopped: str | None
    first_rejection: str | None


async def run(
    records: Iterable[Record],
    work: Work,
    settings: ApiSettings,
    journal: Path,
    output: Path,
    quarantine: Path,
    log: Callable[[str], None] = lambda _: None,
    on_start: Callable[[Session], None] = lambda _: None,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
    review: Review | None = None,
) -> Summary:
    """Process all records. Write their rows to output and `{index, reason, record}` of each rejection to quarantine.

    Each run writes both files from scratch and replaces the old ones at its end. A run that stops early (a fatal error,
    the budget, `Session.drain`) writes the rows of the finished records, in order; the next run completes them. Without
    rejections there is no quarantine file.

    review: for checks that depend on earlier records; it runs in input order, whatever the order of the answers.
    log: called with one-line messages. on_start: called with the session, to watch or drain it. on_outcome: called
        with each outcome after it is written.
    UserError for errors before the first request. Later errors are in the summary's `stopped`.
    """
    start_s = time.monotonic()
    counts = [0, 0, 0]
    first_rejection = None
    async with Session(settings, journal, log) as session:
        on_start(session)
        with _Replacement(output) as rows_file, _Replacement(quarantine) as rejected_file:
            async for outcome in session.outcomes(records, work):
                if review is not None and outcome.reason is None:
                    outcome = await _apply_review(session, outcome, work, review)
                if not is_utf8(outcome.rows):
                    outcome = replace(outcome, rows=[], reason="half a surrogate pair in a row")
                counts[0] += 1
                if outcome.reason is None:
                    counts[2] += rows_file.write(outcome.rows)
                else:
                    counts[1] += 1
                    first_rejection = first_rejection or outcome.reason
                    rejected_file.write([{"index": outcome.index, "reason": outcome.reason, "record": outcome.record}])
                on_outcome(outcome)
            rows_file.finish()
            rejected_file.finish(keep=counts[1] > 0)
        done, ledger = session.counts, session.client.ledger
        return Summary(
            *counts,
            asked=done.asked,
            replayed=session.replayed,
            retries=sum(done.retries.values()),
            tokens=done.tokens,
            usd=ledger.price.usd(done.tokens),
            usd_of_all_runs=ledger.spent_usd,
            maybe_usd=ledger.maybe_spent_usd,
            seconds=time.monotonic() - start_s,
            stopped=session.stopped,
            first_rejection=first_rejection,
        )


async def _apply_review(session: Session, outcome: Outcome, work: Work, review: Review) -> Outcome:
    """Return the outcome, or its rejection. With --retry-quarantined, first request the last answer again."""
    try:
        review(outcome.record, outcome.rows)
        return outcome
    except Rejected as rejected:
        rejection = replace(outcome, rows=[], reason=rejected.reason)
    if session.settings.retry_quarantined:

        async def work_and_review(record: Record, ask: Ask) -> list[Record]:
            rows = await work(record, ask)
            review(record, rows)
            return rows

        async for again in session.outcomes([outcome.record], work_and_review):
            return replace(again, index=outcome.index)
    return rejection


class _Replacement:
    """A JSON Lines file that is written as `NAME.part` and renamed at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")

    def __enter__(self) -> _Replacement:
        with self._as_user_error():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._part, "wb")
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            with self._as_user_error():
                self._file.close()
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, rows: list[Record]) -> int:
        """Append the rows and return their number."""
        with self._as_user_error():
            for row in rows:
                self._file.write(_line(row))
        return len(rows)

    def finish(self, keep: bool = True) -> None:
        """Replace the old file by the new one; with keep=False, only delete the old one."""
        with self._as_user_error():
            self._file.flush()
            os.fsync(self._file.fileno())
            if keep:
                os.replace(self._part, self._path)
            else:
                self._path.unlink(missing_ok=True)

    @contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = "free disk space or choose another path, then run again"
            raise UserError(f"cannot write {self._path}: {error.strerror}: {advice}") from error


def _line(row: Record) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # a lone surrogate in a quarantined record: JSON can escape it
        text = json.dumps(row, allow_nan=False).encode()
    return text + b"\n"
