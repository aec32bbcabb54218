"""The picture of a report, by matplotlib: a panel a task, languages down, each model a dot with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file, on machines without a screen too

from matplotlib import pyplot as plt

from evaluation.results.tables import Table

MARKERS = "osD^vP*X"
SPREAD = 0.5  # of a row's height, over which its models are spread


def draw(path: Path, tables: Sequence[Table]) -> None:
    """Write a PNG of the tables' languages and averages; a task is drawn by its first metric."""
    first = list({table.task: table for table in reversed(tables)}.values())[::-1]
    height = 1.4 + 0.28 * max(len(table.rows) for table in first)
    figure, panels = plt.subplots(1, len(first), figsize=(4.2 * len(first), height), squeeze=False)
    for panel, table in zip(panels[0], first):
        _panel(panel, table)
    # A model may have some of the tasks only: each panel's dots, every name once.
    named = {label: dot for panel in panels[0] for dot, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(named.values(), named.keys(), loc="lower center", ncols=min(len(named), 6), frameon=False)
    figure.tight_layout(rect=(0, 0.6 / height, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(panel: plt.Axes, table: Table) -> None:
    places = range(len(table.rows))[::-1]
    models = [column for column in table.columns if column != "chance"]
    for number, column in enumerate(table.columns):
        # Models a little above each other, so that none hides another.
        shift = 0 if column == "chance" else SPREAD * (0.5 - (models.index(column) + 0.5) / len(models))
        dots = [
            (row.values[number], place + shift)
            for row, place in zip(table.rows, places)
            if row.values[number] is not None
        ]
        if not dots:
            continue
        panel.errorbar(
            [value.percent for value, _ in dots],
            [place for _, place in dots],
            xerr=[0 if value.stderr != value.stderr else value.stderr for value, _ in dots],
            fmt="|" if column == "chance" else MARKERS[number % len(MARKERS)],
            color="grey" if column == "chance" else f"C{number}",
            markersize=12 if column == "chance" else 5,
            label=column,
        )
    panel.set_yticks(list(places), [row.label for row in table.rows], fontsize=7)
    panel.set_ylim(-0.6, len(places) - 0.4)
    panel.tick_params(axis="x", labelsize=7)
    panel.set_title(f"{table.task}, {table.metric}", fontsize=9)
    panel.set_xlabel("%", fontsize=8)
    panel.grid(axis="x", alpha=0.3)
