"""Draw a sunburst with verbs in the inner ring and their objects in the outer one, as SVG or (by matplotlib) PNG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from colorsys import hls_to_rgb
from html import escape
from pathlib import Path
from typing import NamedTuple

SIZE = 800
_HOLE, _BORDER, _RIM = 110, 245, 390  # radii of the rings
_MIN_LABELLED = 0.011  # radians; a smaller arc has no room for a word


class Verb(NamedTuple):
    """A verb, its number of instructions (with any object), and its most frequent objects with their counts."""

    verb: str
    count: int
    objects: Sequence[tuple[str, int]]


class Arc(NamedTuple):
    """One segment of a ring: 0 is the inner ring, angles are in radians clockwise from the top."""

    ring: int
    begin: float
    end: float
    label: str
    count: int
    verb: int  # index of its verb, for the colour


def arcs(verbs: Sequence[Verb]) -> Iterator[Arc]:
    """Yield the arcs. A verb is as wide as its listed objects together, and all listed pairs fill the circle.

    With verbs as wide as their own counts, most of the outer ring would be empty: there are many rare objects.
    """
    whole = sum(count for verb in verbs for _, count in verb.objects) or 1
    begin = 0.0
    for index, verb in enumerate(verbs):
        at = begin
        for noun, count in verb.objects:
            yield Arc(1, at, at := at + 2 * math.pi * count / whole, noun, count, index)
        yield Arc(0, begin, at, verb.verb, verb.count, index)
        begin = at


def write_figure(path: Path, verbs: Sequence[Verb], total: int) -> None:
    """Write the sunburst as .svg or .png, by the suffix. total: number of instructions, for the shares in the SVG.

    UserError if a .png needs matplotlib and it is not installed.
    """
    if path.suffix == ".svg":
        path.write_text(svg(verbs, total), encoding="utf-8")
    else:
        _write_png(path, verbs)


def svg(verbs: Sequence[Verb], total: int) -> str:
    """Return the sunburst as an SVG document. Its tooltips show count and share of each arc."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" font-family="sans-serif">',
        f'<rect width="{SIZE}" height="{SIZE}" fill="white"/>',
        f'<g transform="translate({SIZE // 2} {SIZE // 2})">',
    ]
    for arc in arcs(verbs):
        inner, outer = (_HOLE, _BORDER) if arc.ring == 0 else (_BORDER, _RIM)
        hue = 360 * arc.verb / max(len(verbs), 1)
        label = escape(arc.label)
        parts.append(
            f'<path d="{_ring_segment(inner, outer, arc.begin, arc.end)}" stroke="white" '
            f'fill="hsl({hue:.0f} 60% {62 if arc.ring == 0 else 80}%)">'
            f"<title>{label}: {arc.count:,} ({arc.count / max(total, 1):.2%})</title></path>"
        )
        if arc.end - arc.begin > _MIN_LABELLED:
            parts.append(_label(label, (inner + outer) / 2, arc))
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _ring_segment(inner: float, outer: float, begin: float, end: float) -> str:
    # SVG draws nothing for an arc that ends where it begins, so stop just short of a full circle.
    end = min(end, begin + 2 * math.pi - 1e-4)
    is_large = int(end - begin > math.pi)
    a, b = _point(inner, begin), _point(outer, begin)
    c, d = _point(outer, end), _point(inner, end)
    return f"M{a} L{b} A{outer} {outer} 0 {is_large} 1 {c} L{d} A{inner} {inner} 0 {is_large} 0 {a} Z"


def _point(radius: float, angle: float) -> str:
    return f"{radius * math.sin(angle):.2f} {-radius * math.cos(angle):.2f}"


def _label(label: str, radius: float, arc: Arc) -> str:
    middle = (arc.begin + arc.end) / 2
    turn = math.degrees(middle) - 90
    if middle > math.pi:  # labels in the left half would be upside down
        turn += 180
    size = max(4.0, min(14.0, radius * (arc.end - arc.begin) * 0.8))
    x, y = _point(radius, middle).split()
    return (
        f'<text x="{x}" y="{y}" transform="rotate({turn:.1f} {x} {y})" font-size="{size:.1f}" '
        f'text-anchor="middle" dominant-baseline="central">{label}</text>'
    )


def _write_png(path: Path, verbs: Sequence[Verb]) -> None:
    from matplotlib.figure import Figure  # takes a second: only for a PNG
    from matplotlib.patches import Wedge

    figure = Figure(figsize=(8, 8), dpi=200)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-SIZE / 2, SIZE / 2), ylim=(-SIZE / 2, SIZE / 2))
    axes.set_axis_off()
    for arc in arcs(verbs):
        inner, outer = (_HOLE, _BORDER) if arc.ring == 0 else (_BORDER, _RIM)
        begin, end = 90 - math.degrees(arc.end), 90 - math.degrees(arc.begin)
        colour = hls_to_rgb(arc.verb / max(len(verbs), 1), 0.62 if arc.ring == 0 else 0.80, 0.6)
        axes.add_patch(Wedge((0, 0), outer, begin, end, width=outer - inner, facecolor=colour, edgecolor="white"))
        if arc.end - arc.begin > _MIN_LABELLED:
            middle, radius = (arc.begin + arc.end) / 2, (inner + outer) / 2
            turn = 90 - math.degrees(middle) + (180 if middle > math.pi else 0)
            size = max(3.0, min(10.0, radius * (arc.end - arc.begin) * 0.55))
            point = (radius * math.sin(middle), radius * math.cos(middle))
            axes.text(*point, arc.label, rotation=turn, fontsize=size, ha="center", va="center", rotation_mode="anchor")
    figure.savefig(path)
