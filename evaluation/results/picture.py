"""Draw a report with matplotlib: a panel per task, a row per language, a dot with its standard error per model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # works without a screen

from matplotlib import pyplot as plt

from evaluation.results.tables import Table

MARKERS = "osD^vP*X"
MOST_ACROSS = 4  # panels
SPREAD = 0.5  # share of a row's height that its dots take up


def draw(path: Path, tables: Sequence[Table]) -> None:
    """Write a PNG of the languages and averages of the tables. Each task shows its first metric."""
    first = list({table.task: table for table in reversed(tables)}.values())[::-1]
    columns = min(len(first), MOST_ACROSS)
    down = -(-len(first) // columns)
    height = 0.6 + down * (0.8 + 0.28 * max(len(table.rows) for table in first))
    figure, grid = plt.subplots(down, columns, figsize=(4.2 * columns, height), squeeze=False)
    panels = grid.flatten()
    for panel, table in zip(panels, first):
        _panel(panel, table)
    for panel in panels[len(first) :]:
        panel.set_axis_off()
    # Collect the legend over all panels, each name once: a model may lack some tasks.
    legend = {label: dot for panel in panels for dot, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(legend.values(), legend.keys(), loc="lower center", ncols=min(len(legend), 6), frameon=False)
    figure.tight_layout(rect=(0, 0.6 / height, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(panel: plt.Axes, table: Table) -> None:
    heights = range(len(table.rows))[::-1]  # the first row is on top
    models = [column for column in table.columns if column != "chance"]
    for number, column in enumerate(table.columns):
        # Shift each model vertically, so that no dot hides another.
        shift = 0 if column == "chance" else SPREAD * (0.5 - (models.index(column) + 0.5) / len(models))
        dots = [
            (row.values[number], height + shift)
            for row, height in zip(table.rows, heights)
            if row.values[number] is not None
        ]
        if not dots:
            continue
        panel.errorbar(
            [value.percent for value, _ in dots],
            [height for _, height in dots],
            xerr=[0 if value.stderr != value.stderr else value.stderr for value, _ in dots],
            fmt="|" if column == "chance" else MARKERS[number % len(MARKERS)],
            color="grey" if column == "chance" else f"C{number}",
            markersize=12 if column == "chance" else 5,
            label=column,
        )
    panel.set_yticks(list(heights), [row.label for row in table.rows], fontsize=7)
    panel.set_ylim(-0.6, len(heights) - 0.4)
    panel.tick_params(axis="x", labelsize=7)
    panel.set_title(f"{table.task}, {table.metric}", fontsize=9)
    panel.set_xlabel("%", fontsize=8)
    panel.grid(axis="x", alpha=0.3)
