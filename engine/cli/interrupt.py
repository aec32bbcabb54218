"""Ctrl-C and SIGTERM: noted when they come, acted on where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Inside this context both signals wait until somebody looks at `signal`; a second Ctrl-C does not wait.

    A context may be entered again inside of itself or after it; a signal that has come stays noted.
    """

    def __init__(self, notice: str):
        """notice: a line for standard error when one comes; "" for none."""
        self._notice = notice
        self.signal = 0
        self._depth = 0
        self._handlers: dict[int, Any] = {}

    def check(self) -> None:
        """SystemExit with status 130 (Ctrl-C) or 143 (SIGTERM) if one has come."""
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
            os.write(2, f"\n{self._notice}\n".encode())  # not print: the signal may have come inside of one
        self.signal = self.signal or number
