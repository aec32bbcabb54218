"""A session: process records concurrently, take answers from the journal or the API, yield results in input order."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datagen.api.chat import Message, Record, Rejected, Reply, Request, Unanswered, Work
from datagen.api.client import Client, Counts
from datagen.api.journal import Journal
from datagen.api.settings import ApiSettings, endpoints
from engine.base.errors import UserError

# Maximum number of results in memory that wait for an earlier record.
LOOKAHEAD = 20_000


@dataclass(frozen=True)
class Outcome:
    """The result of one record: its output rows, or the reason of its rejection."""

    index: int
    record: Record
    rows: list[Record]
    reason: str | None


class _Draining(Exception):
    """Raised by `ask` when the session sends no more requests. The next run processes the record."""


class Session:
    """An open journal and a client, as an async context manager. `outcomes` may be called repeatedly.

    counts     request counters of this session
    replayed   the number of answers from the journal
    stopped    one line why the session stopped early, or None
    """

    def __init__(self, settings: ApiSettings, journal: Path, log: Callable[[str], None] = lambda _: None) -> None:
        """Open the journal. log: called with one-line messages.

        UserError for a missing key, a bad URL, a budget without a price, or a journal that another process holds.
        """
        reachable = endpoints(settings)
        self.settings = settings
        self.journal = Journal(journal, on_full=log)
        self.replayed = 0
        self.stopped: str | None = None
        self._is_draining = False
        self._pending: dict[bytes, asyncio.Task[Reply]] = {}
        self._sent: set[bytes] = set()
        self._asked_in_session: set[bytes] = set()
        try:
            self.client = Client(settings, reachable, self.journal)
        except UserError:
            self.journal.release()
            raise
        for offset, length in self.journal.damage:
            log(f"{journal}: {length} bytes at {offset} are damaged: answers lost there are requested again if needed")

    @property
    def counts(self) -> Counts:
        """The request counters of this session."""
        return self.client.counts

    async def __aenter__(self) -> Session:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._cancel_unsent()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self.client.__aexit__(*error)
        await self.journal.close()

    def drain(self, why: str) -> None:
        """Send no more requests. Requests in flight are still awaited, because they may be charged."""
        self.stopped = self.stopped or why
        self._cancel_unsent()

    def abort(self) -> None:
        """Cancel the requests in flight. Call it after `drain`."""
        for task in self._pending.values():
            task.cancel()

    def _cancel_unsent(self) -> None:
        self._is_draining = True
        for key, task in self._pending.items():
            if key not in self._sent:
                task.cancel()

    async def outcomes(self, records: Iterable[Record], work: Work) -> AsyncIterator[Outcome]:
        """Yield the outcome of each record, in input order. Up to settings.concurrency records run at once.

        If the session stops, only the finished records are yielded. To stop early, leave the loop: requests in flight
        are awaited at the end of the session and journaled.
        """
        source = enumerate(records)
        running: dict[asyncio.Task[Outcome | None], int] = {}
        results: dict[int, Outcome | None] = {}
        changed = asyncio.Event()
        bugs: list[BaseException] = []

        def finished(task: asyncio.Task[Outcome | None]) -> None:
            error = None if task.cancelled() else task.exception()
            results[running.pop(task)] = None if task.cancelled() or error else task.result()
            if error is not None:
                if not isinstance(error, UserError):
                    bugs.append(error)
                self.drain(str(error))
            changed.set()

        try:
            for next_index in itertools.count():
                while next_index not in results:
                    self._start_more(source, work, running, len(results), finished)
                    if not running:
                        break
                    changed.clear()
                    await changed.wait()
                if next_index not in results:
                    break
                if outcome := results.pop(next_index):
                    yield outcome
        finally:
            for task in running:
                task.cancel()
        if bugs:
            raise bugs[0]

    def _start_more(
        self,
        source: Iterable[tuple[int, Record]],
        work: Work,
        running: dict[asyncio.Task[Outcome | None], int],
        held: int,
        finished: Callable[[asyncio.Task[Outcome | None]], None],
    ) -> None:
        while not self._is_draining and len(running) < self.settings.concurrency and held < LOOKAHEAD:
            try:
                index, record = next(source)
            except StopIteration:
                return
            except UserError as error:
                self.drain(str(error))
                return
            task = asyncio.create_task(self._work_on(index, record, work))
            running[task] = index
            task.add_done_callback(finished)

    async def _work_on(self, index: int, record: Record, work: Work) -> Outcome | None:
        asker = _Asker(self)
        try:
            try:
                return Outcome(index, record, await work(record, asker.ask), None)
            except Unanswered:
                raise
            except Rejected as rejected:
                # With --retry-quarantined, request the rejected answer again if it comes from an earlier run.
                rejected_key = asker.key_of(rejected.reply)
                if (
                    not self.settings.retry_quarantined
                    or rejected_key is None
                    or rejected_key in self._asked_in_session
                ):
                    return Outcome(index, record, [], rejected.reason)
            return Outcome(index, record, await work(record, _Asker(self, rejected_key).ask), None)
        except Rejected as rejected:
            return Outcome(index, record, [], rejected.reason)
        except _Draining:
            return None

    async def _reply(self, request: Request, key: bytes) -> Reply:
        """Send the request, or wait for an equal one in flight. Cancelling the waiter does not cancel the request."""
        if self._is_draining:
            raise _Draining
        if key not in self._pending:
            self._asked_in_session.add(key)
            task = asyncio.create_task(
                self.client.complete(request, lambda is_sent: self._mark_in_flight(key, is_sent))
            )
            self._pending[key] = task
            task.add_done_callback(lambda task: self._forget_request(key, task))
        task = self._pending[key]
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise _Draining from None
            raise

    def _mark_in_flight(self, key: bytes, is_sent: bool) -> None:
        if is_sent:
            self._sent.add(key)
        else:
            self._sent.discard(key)
            if self._is_draining:
                raise _Draining

    def _forget_request(self, key: bytes, task: asyncio.Task[Reply]) -> None:
        del self._pending[key]
        self._sent.discard(key)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: the waiting record may be gone


class _Asker:
    """The requests of one record. ask_again: key of a request whose journaled answer must not be used."""

    def __init__(self, session: Session, ask_again: bytes | None = None) -> None:
        self._session = session
        self._ask_again = ask_again
        self._replies: list[tuple[Reply, bytes]] = []

    async def ask(self, messages: Iterable[Message], nonce: Any = None, **params: Any) -> Reply:
        """Return the reply to the messages, from the journal or the API. See datagen.run.runner."""
        session = self._session
        request = session.settings.request(tuple(messages), nonce, **params)
        key = request.key
        is_new = key in session._asked_in_session
        reply = None
        if key != self._ask_again or is_new:
            reply = session.journal.answer(key)
            refusal = session.journal.refusal(key)
            if reply is None and refusal is not None and (is_new or not session.settings.retry_quarantined):
                raise Unanswered(refusal)
        if reply is None:
            reply = await session._reply(request, key)
        elif not is_new:
            session.replayed += 1
        self._replies.append((reply, key))
        return reply

    def key_of(self, reply: Reply | None) -> bytes | None:
        """Return the key of the request with this reply (for None: with the last reply), or None if there is none."""
        for known, key in reversed(self._replies):
            if reply is None or known is reply:
                return key
        return None
