"""Defer Ctrl-C and SIGTERM until a point where no work is lost."""

from __future__ import annotations

import os
import signal
import threading
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Record both signals in `signal` instead of acting on them; a second Ctrl-C raises KeyboardInterrupt at once.

    The context may be nested or entered again. A recorded signal stays recorded.
    """

    def __init__(self, notice: str):
        """Print `notice` to standard error on the first signal; "" prints nothing."""
        self._notice = notice
        self.signal = 0
        self._depth = 0
        self._handlers: dict[int, Any] = {}

    def check(self) -> None:
        """Raise SystemExit with status 130 (Ctrl-C) or 143 (SIGTERM) if a signal was recorded."""
        if self.signal:
            raise SystemExit(128 + self.signal)

    def __enter__(self) -> Interrupt:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if not self._depth:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._notice and not self.signal:
            os.write(2, f"\n{self._notice}\n".encode())  # not print: the signal may have interrupted one
        self.signal = self.signal or number
