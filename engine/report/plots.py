"""The plots of a report by matplotlib: as SVG with the page's colours, and as PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw to files, also on machines without a screen

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from engine.report.curves import Curve, Line
from engine.report.markup import Markup

# Okabe and Ito's colour-blind safe colours; the style sheet has lighter ones for dark mode.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", "-.", ":")
INK, FAINT = "#1d2329", "#d7dce1"
_VARIABLES = {INK: "--ink", FAINT: "--line"} | {colour: f"--series-{i}" for i, colour in enumerate(SERIES)}
_STYLE = {
    "svg.fonttype": "none",  # keep text as text, drawn in the reader's fonts
    "svg.hashsalt": "report",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a folder's name may contain a dollar
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def draw_curve(curve: Curve, lines: Sequence[Line], png: Path) -> Markup:
    """Draw each run (thin) and the smoothed mean of each experiment (thick). Writes the PNG, returns the SVG."""

    def draw(axes: Axes) -> None:
        for number, line in enumerate(lines):
            colour, dash = _style(number)
            has_both = bool(line.mean and line.heldout)
            for points in line.each:
                axes.plot(*zip(*points), color=colour, linewidth=0.8, alpha=0.35)
            if line.mean:
                axes.plot(
                    *zip(*line.mean), color=colour, linestyle=dash, linewidth=1.9,
                    label=f"{line.label}, training" if has_both and len(lines) > 1 else "training" if has_both
                    else line.label, marker="o" if len(line.mean) == 1 else None,
                )  # fmt: skip
            if line.heldout:
                _draw_heldout(axes, line, _heldout_colour(number, len(lines)), len(lines) > 1)
            if curve.against is not None:
                axes.plot(*line.mean[0], marker="o", markersize=6, markerfacecolor="none", color=colour)
                axes.plot(*line.mean[-1], marker="o", markersize=6, color=colour)
        axes.set_xlabel(curve.against_unit)
        axes.set_ylabel(curve.unit)
        if curve.against is None:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if len(lines) > 1 or any(line.heldout for line in lines):
            named = sorted(zip(*axes.get_legend_handles_labels()), key=lambda pair: "kept: " in pair[1])  # rings last
            axes.legend(*zip(*named))

    return _picture(draw, png)


def _heldout_colour(number: int, experiments: int) -> str:
    """One experiment has a colour for training and one for held-out data; several have one each."""
    return SERIES[1] if experiments == 1 else _style(number)[0]


def _draw_heldout(axes: Axes, line: Line, colour: str, is_named: bool) -> None:
    """Draw the points on held-out data with their intervals, and a ring around each step that was kept."""
    places, values = zip(*line.heldout)
    name = f"{line.label}, " if is_named else ""
    axes.errorbar(
        places, values, line.halves or None, color=colour, linestyle=":", linewidth=1.2, marker="o", markersize=3.5,
        elinewidth=0.8, capsize=2, label=f"{name}held out",
    )  # fmt: skip
    if line.kept:
        steps = ", ".join(f"{step:,}" for step, _ in line.kept)
        axes.plot(
            *zip(*line.kept), linestyle="none", marker="o", markersize=10, markerfacecolor="none", markeredgewidth=1.6,
            color=INK, label=f"{name}kept: {steps}",
        )  # fmt: skip


def draw_histograms(found: Sequence[tuple[str, list[float], list[float]]], png: Path) -> Markup:
    """Draw histograms of the scores of the first step (outline) and the last (filled)."""

    def draw(axes: Axes) -> None:
        values = [x for _, first, last in found for x in (*first, *last)]
        low, high = min(values), max(values)
        width = (high - low or 1.0) / 24
        edges = [low - width / 2 + width * i for i in range(26)]
        for number, (label, first, last) in enumerate(found):
            name = f"{label}: " if len(found) > 1 else ""
            before, after = SERIES[2 * number % len(SERIES)], SERIES[(2 * number + 1) % len(SERIES)]
            for scores, colour, when, filled in ((first, before, "first", False), (last, after, "last", True)):
                weights = [100 / len(scores)] * len(scores)
                axes.hist(
                    scores, edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.4 if filled else 0.12
                )
                axes.hist(
                    scores, edges, weights=weights, histtype="step", color=colour, linewidth=1.5,
                    linestyle="-" if filled else "--", label=f"{name}{when} step ({len(scores):,})",
                )  # fmt: skip
        axes.set_xlabel("score")
        axes.set_ylabel("% of responses")
        axes.legend()

    return _picture(draw, png)


def _style(number: int) -> tuple[str, str]:
    """Return colour and dashes; the first 24 lines are all different."""
    return SERIES[number % len(SERIES)], DASHES[(number // len(SERIES) + number) % len(DASHES)]


def _picture(draw: Callable[[Axes], None], png: Path) -> Markup:
    with matplotlib.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(4.4, 2.7), layout="constrained")
        draw(axes)
        figure.savefig(png, dpi=160, metadata={"Software": None})
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return _inline(file.getvalue())


def _inline(svg: str) -> Markup:
    """Turn a figure into SVG for the page: its colours are the page's variables, and its ids are unique."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup(svg)
