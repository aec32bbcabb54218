"""What an evaluation found: the summaries of its tasks, and the table that it prints at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.cli.console import Console
from evaluation.results.summary import Summary
from evaluation.results.units import interval, scale, unit


@dataclass
class Found:
    """What the first rank writes at the end.

    summaries, counts  by "<task>.<lang>"
    spreads            of --seeds, by name of a summary: see spread_of
    """

    summaries: dict[str, Sequence[Summary]] = field(default_factory=dict)
    counts: dict[str, Mapping[str, int]] = field(default_factory=dict)
    spreads: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        lines: Sequence[Summary],
        counts: Mapping[str, int],
        spreads: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.summaries[name] = lines
        self.counts[name] = counts
        self.spreads |= spreads or {}

    def spread_cells(self, name: str, metric: str) -> tuple[str, ...]:
        """Return the number of draws and their standard deviation; () without --seeds."""
        if not self.spreads:
            return ()
        spread = self.spreads[name][metric]
        return str(len(spread["values"])), "" if spread["std"] is None else f"{scale(metric) * spread['std']:.2f}"


def show(console: Console, found: Found) -> None:
    """Print tasks, groups and subsets as a table. Subjects are in results.json only."""
    rows = []
    for lines in found.summaries.values():
        for line in lines:
            if line is lines[0] or line.members or line.apart:
                for metric, mean in line.metrics.items():
                    bounds = interval(metric, mean)
                    is_first, times = metric == next(iter(line.metrics)), scale(metric)
                    chance = f"{times * line.chance:.2f}" if is_first and line.chance else ""
                    title = metric if unit(metric) == "%" else f"{metric} ({unit(metric)})"
                    rows.append((
                        line.name, title, f"{times * mean.value:.2f}", f"{times * mean.stderr:.2f}",
                        f"{times * bounds[0]:.1f} to {times * bounds[1]:.1f}" if bounds else "", chance,
                        str(line.ties.get(metric, "")), f"{line.count:,}", *found.spread_cells(line.name, metric),
                    ))  # fmt: skip
    console.say()
    spread = ("draws", "std of draws") if found.spreads else ()
    console.table(("task", "metric", "%", "+-", "95 %", "chance", "ties", "documents", *spread), rows)
    for key, values in found.counts.items():
        suffix = dict.fromkeys(("bad_records", "unlabelled"), " skipped")
        handled = {name: n for name, n in values.items() if name not in ("documents", "prompt_tokens")}
        if handled:
            notes = ", ".join(f"{n:,} {name.replace('_', ' ')}{suffix.get(name, '')}" for name, n in handled.items())
            console.say(f"  {key}: {values['documents']:,} documents, {notes}")
