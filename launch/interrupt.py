"""Ctrl-C and SIGTERM: noted when they come, acted on where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Inside this context both signals wait for the next `check`; a second Ctrl-C does not wait."""

    def __init__(self, notice: str):
        """notice: a line for standard error when one comes; "" for none."""
        self._notice = notice
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    def check(self) -> None:
        """SystemExit with status 130 (Ctrl-C) or 143 (SIGTERM) if one has come."""
        if self._signal:
            raise SystemExit(128 + self._signal)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if number == self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._notice and not self._signal:
            os.write(2, f"\n{self._notice}\n".encode())  # not print: the signal may have come inside of one
        self._signal = self._signal or number
