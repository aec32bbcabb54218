"""Runs work on records: every record through a work function, its rows into a file, in input order, each exactly once.

A work function is `async def work(record, ask) -> list[record]`: the output records of one input record. It asks by

    reply = await ask(messages, temperature=0, max_tokens=500)

as often as it needs (a dialog of two turns is two asks), and raises `Rejected(reason)` where an answer is no good.
Every answer is in the journal, under the content hash of its request, before `ask` returns, and a request that is there
is not asked again. So a restart runs `work` anew with the journal's answers and comes to the same point, however often
it was killed, provided that `work` does the same with the same answers: no clock, no random numbers but those seeded by
the record. Equal requests of one run are asked once; give them a `nonce=` to draw several answers.

    summary = await run(records, work, settings, journal, output, quarantine)     # into two files
    async with Session(settings, journal) as session:                             # or one by one, in input order
        async for outcome in session.outcomes(records, work): ...

datagen/run/command.py does the former for a command line: flags, --dry-run, Ctrl-C, the progress line.
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

# review(record, rows): a second look at the rows of each record, in the order of the records. It raises Rejected, or
# takes rows out of the list.
Review = Callable[[Record, list[Record]], None]


@dataclass(frozen=True)
class Summary:
    """What a run did.

    records     that ended, well or rejected; `rejected` of them are in the quarantine, `rows` came of the others
    asked       answers that the API gave in this run; `replayed` came from the journal
    retries     attempts that gave no answer
    tokens      paid in this run; usd is what they cost, usd_of_all_runs what all runs on the journal have cost
    maybe_usd   at most so much more, for attempts whose end is unknown
    stopped     why the run ended early, None if it is complete
    first_rejection   why the first rejected record was rejected
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
    """Works on all records; output gets their rows, quarantine `{index, reason, record}` of each that was rejected.

    Both files are made anew by every run and replaced only at its end, with what is finished by then: a run that was
    stopped (a fatal error, the budget, `Session.drain`) leaves the rows of the finished records, in order, and the next
    run completes them. Without rejections there is no quarantine file.

    review: for checks that depend on the records before, whichever answer comes first.
    tell: given one line where something is to be known; on_start: given the session, to watch or drain it.
    UserError for what is wrong before the first request; later errors are in the summary's `stopped`.
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
    """The outcome, or its rejection; with --retry-quarantined the record's last answer is asked for again first."""
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
    """A JSON Lines file under a second name, `NAME.part`, until it is finished."""

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
        """Appends the rows; how many they were."""
        with self._as_user_error():
            for row in rows:
                self._file.write(_line(row))
        return len(rows)

    def finish(self, keep: bool = True) -> None:
        """Takes the place of the file, or removes it."""
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
            advice = "make room or choose another path, then run again"
            raise UserError(f"cannot write {self._path}: {error.strerror}: {advice}") from error


def _line(row: Record) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a character in a record that is quarantined: JSON has an escape for it
        text = json.dumps(row, allow_nan=False).encode()
    return text + b"\n"
