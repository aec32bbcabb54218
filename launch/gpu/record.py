"""The JSON file of a stage: a case is written when it begins, with its predictions, and when it ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.base.atomic import write_json
from engine.base.strict_json import read_object
from launch.gpu.lines import Case, Expected, Measured, Spread

RUNNING, DONE, FAILED, LEFT_OUT = "running", "done", "failed", "left out"
ENDED = (DONE, FAILED)


class Record:
    """A stage's cases by name. A case that was done or has failed is not run again; one left out is."""

    def __init__(self, path: Path, header: dict[str, Any]):
        """Read the file if it exists; `header` (the stage, fake or not) is written into a new one."""
        self.path = path
        self.content = read_object(path) if path.is_file() else {**header, "complete": False, "cases": []}

    @property
    def cases(self) -> list[dict[str, Any]]:
        return self.content["cases"]

    def find(self, name: str) -> dict[str, Any] | None:
        return next((case for case in self.cases if case["name"] == name), None)

    def has_ended(self, name: str) -> bool:
        case = self.find(name)
        return case is not None and case["state"] in ENDED

    @property
    def num_ended(self) -> int:
        return sum(case["state"] in ENDED for case in self.cases)

    def begin(self, case: Case) -> None:
        """Write the case's predictions, before anything is measured."""
        self._put(case.name, RUNNING, [_line(expected) for expected in case.expected])

    def end(self, case: Case, measured: Measured, seconds: float) -> None:
        """Write what was measured, with a verdict for each target."""
        lines = [_line(expected, measured.numbers.get(expected.what)) for expected in case.expected]
        self._put(case.name, DONE, lines, seconds=seconds, details=measured.details)

    def fail(self, name: str, error: str, expected: Sequence[Expected] = (), **more: Any) -> None:
        """Write the last line of what went wrong."""
        before = self.find(name)
        lines = [_line(e) for e in expected] or (before["lines"] if before else [])
        self._put(name, FAILED, lines, error=error, **more)

    def leave_out(self, name: str, reason: str) -> None:
        """Write why the case was not measured. The next run tries it again."""
        self._put(name, LEFT_OUT, [], reason=reason)

    def complete(self, is_complete: bool) -> None:
        """Write whether no case is left that could run here."""
        self.content["complete"] = is_complete
        self._write()

    def _put(self, name: str, state: str, lines: list[dict[str, Any]], **more: Any) -> None:
        new = {"name": name, "state": state, "lines": lines, "at": datetime.now().isoformat(timespec="seconds"), **more}
        if (old := self.find(name)) is None:
            self.cases.append(new)
        else:
            self.cases[self.cases.index(old)] = new
        self._write()

    def _write(self) -> None:
        write_json(self.path, _without_nan(self.content))


def _line(expected: Expected, measured: Spread | float | None = None) -> dict[str, Any]:
    """Return a line of the file; without a target its verdict is None."""
    spread = Spread.of([float(measured)]) if isinstance(measured, int | float) else measured
    goal, verdict = expected.goal, expected.goal and "not measured"
    if spread is not None and goal is not None:
        verdict = goal.verdict(spread.median, expected.predicted)
    return {
        "what": expected.what,
        "unit": expected.unit,
        "predicted": expected.predicted,
        "measured": spread and dataclasses.asdict(spread),
        "target": goal.text if goal else None,
        "verdict": verdict,
        "of_machine": expected.of_machine,
    }


def _without_nan(value: Any) -> Any:
    """Return the value with "NaN" and "inf" as text: strict JSON has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value
