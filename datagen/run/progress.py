"""The progress line of a run: records, answers per minute, tokens, cost, retries and time left."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TextIO

from datagen.run.session import Outcome, Session

_REFRESH_S = 0.5  # on a terminal; elsewhere a line every _LOG_INTERVAL_S
_LOG_INTERVAL_S = 30.0
_BAR_WIDTH = 20


class Progress:
    """Rewrites one line on a terminal; elsewhere, prints a line every 30 seconds.

    total: the number of records, or None if unknown. stream: default is standard error.
    """

    def __init__(self, session: Session, total: int | None, stream: TextIO | None = None) -> None:
        self._session = session
        self._total = total
        self._stream = stream or sys.stderr
        self._done = self._rejected = 0
        self._start_s = time.monotonic()
        self._task = asyncio.create_task(self._show_forever())

    def add(self, outcome: Outcome) -> None:
        """Count a finished record."""
        self._done += 1
        self._rejected += outcome.reason is not None

    def log(self, line: str) -> None:
        """Print a separate line above the progress line."""
        self._stream.write(("\r\x1b[K" if self._stream.isatty() else "") + line + "\n")
        self._stream.flush()

    def stop(self) -> None:
        """Stop the updates and clear the line."""
        self._task.cancel()
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def line(self) -> str:
        """Return the current progress line."""
        seconds = max(time.monotonic() - self._start_s, 1e-9)
        counts, ledger = self._session.counts, self._session.client.ledger
        parts = [f"{self._done:,}" if self._total is None else f"{self._bar()} {self._done:,}/{self._total:,}"]
        if self._rejected:
            parts.append(f"{self._rejected:,} rejected")
        parts.append(f"{counts.asked * 60 / seconds:,.0f} answers/min")
        parts.append(f"{counts.in_flight} in flight")
        parts.append(f"{sum(counts.tokens):,} tokens")
        parts.append(f"${ledger.spent_usd:.4f}" if ledger.is_priced else "no price")
        if retries := sum(counts.retries.values()):
            parts.append(f"{retries:,} retries ({counts.retries.most_common(1)[0][0]})")
        if self._session.stopped:
            parts.append("stopping")
        elif self._total and self._done:
            parts.append(f"{clock((self._total - self._done) * seconds / self._done)} left")
        return ", ".join(parts)

    def _bar(self) -> str:
        full = _BAR_WIDTH * self._done // max(self._total or 1, 1)
        return f"[{'#' * full}{'.' * (_BAR_WIDTH - full)}]"

    async def _show_forever(self) -> None:
        is_terminal = self._stream.isatty()
        while True:
            await asyncio.sleep(_REFRESH_S if is_terminal else _LOG_INTERVAL_S)
            self._stream.write(f"\r\x1b[K{self.line()}" if is_terminal else f"{self.line()}\n")
            self._stream.flush()


def clock(seconds: float) -> str:
    """Format seconds as 1:02:03, or 2:03 below one hour."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
