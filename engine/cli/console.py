"""Print headers, progress bars, aligned rows and tables, on the first rank only."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from tqdm import tqdm


class Console:
    """Print lines to stdout and progress bars to stderr. Prints nothing if disabled, and bars only on a terminal."""

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._widths: dict[str, int] | None = None

    def say(self, text: str = "") -> None:
        if self.enabled:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def header(self, title: str, rows: Mapping[str, object]) -> None:
        """Print a title and aligned name-value lines."""
        self._widths = None
        width = max(map(len, rows))
        self.say(f"\n{title}")
        for name, value in rows.items():
            self.say(f"  {name:<{width}}  {value}")

    def row(self, values: Mapping[str, str]) -> None:
        """Print one line of fixed columns; print the names first if they have changed."""
        if self._widths is None or list(self._widths) != list(values):
            self._widths = {name: max(len(name), _room(value)) for name, value in values.items()}
            self.say("  ".join(f"{name:>{width}}" for name, width in self._widths.items()))
        self.say("  ".join(f"{values[name]:>{width}}" for name, width in self._widths.items()))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print aligned columns: the first left-aligned, the others right-aligned."""
        widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
        for line in (head, ["-" * w for w in widths], *rows):
            first, *others = (
                f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, widths))
            )
            self.say("  " + "  ".join([first, *others]))

    def bar(self, total: int, what: str, unit: str) -> tqdm:
        """Return a progress bar that disappears when done."""
        silent = True if not self.enabled else None  # None: show on a terminal only
        return tqdm(total=total, desc=what, unit=unit, leave=False, disable=silent, dynamic_ncols=True)


def _room(first: str) -> int:
    """Return the width of a column from its first cell: 1/500 may grow to 500/500, a number by one digit."""
    _, slash, total = first.partition("/")
    return 2 * len(total) + 1 if slash else len(first) + 1


def short(x: float) -> str:
    """Format a number in at most seven characters."""
    return f"{x:.4f}" if abs(x) < 100 else f"{x:.1f}"
