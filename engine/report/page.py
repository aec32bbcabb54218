"""The page of a report: one file without scripts or external resources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.base.errors import UserError
from engine.report import tables
from engine.report.curves import CURVES, lines_of, score_histograms
from engine.report.markup import Markup, join, tag
from engine.report.plots import draw_curve, draw_histograms
from engine.report.reading import STAGES, RunFolder
from engine.report.style import STYLE

# Nothing may be loaded or run, whatever a model's answer contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(runs: Sequence[RunFolder], output: Path) -> None:
    """Write the page, and its plots as PNG files into a folder beside it."""
    pictures = plots(runs, output.with_name(f"{output.stem}_plots"))
    try:
        output.write_text(page(runs, pictures), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): choose another file") from error


def plots(runs: Sequence[RunFolder], folder: Path) -> list[Markup]:
    """Draw the figures, also as PNG files into the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = []
        for curve in CURVES:
            if lines := lines_of(curve, runs):
                picture = draw_curve(curve, lines, folder / f"{curve.name}.png")
                figures.append(_figure(curve.title, picture, _caption(curve.against is not None, lines)))
        if found := score_histograms(runs):
            picture = draw_histograms(found, folder / "ppo_scores.png")
            figures.append(_figure("PPO: scores before and after", picture, "of the rollouts of a step"))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): give another --output") from error
    return figures


def _caption(is_frontier: bool, lines: Sequence) -> str:
    seeds = max(max(len(line.each), 1) for line in lines)
    window = max(line.window for line in lines)
    what = "thin: each seed; thick: their mean" if seeds > 1 else "thin: as logged; thick: mean"
    words = f"{what} over {window} steps" if window > 1 else what if seeds > 1 else ""
    ends = "hollow: first step, full: last" if is_frontier else ""
    points = "points: held out, with 95 % intervals" if any(line.halves for line in lines) else ""
    ring = "ring: the exported step" if any(line.kept for line in lines) else ""
    return "; ".join(part for part in (ends, words, points, ring) if part)


def _figure(title: str, picture: Markup, caption: str) -> Markup:
    return tag("figure", tag("h3", title), picture, tag("figcaption", caption) if caption else "", role="group")


def page(runs: Sequence[RunFolder], pictures: Sequence[Markup]) -> Markup:
    """Return the HTML file."""
    languages = ", ".join(dict.fromkeys(tables.language_of(run) for run in runs))
    names = {"pretrain": "pretraining", "sft": "SFT", "reward": "reward model", "dpo": "DPO", "ppo": "PPO"}
    stages = [names[s] for s in STAGES if any(s in r.stages for r in runs)]
    title = f"{languages}: {', '.join(stages)}"
    parts = {
        "Results": tables.reached(runs),
        "Kept and stopped": tables.kept(runs),
        "Curves": tag("div", *pictures, class_="plots") if pictures else None,
        "Answers": _answers(runs),
        "Evaluation": tables.evaluations(runs),
        "Time": tables.times(runs),
        "Settings": tables.settings(runs),
        "Machine and versions": tables.machines(runs),
    }
    shown = {heading: part for heading, part in parts.items() if part is not None}
    ids = {heading: heading.split()[0].lower() for heading in shown}
    links = tag("nav", *(tag("a", heading, href=f"#{ids[heading]}") for heading in shown))
    sections = [tag("section", tag("h2", heading), part, id=ids[heading]) for heading, part in shown.items()]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    body = tag("body", tag("h1", title), tag("p", ", ".join(run.name for run in runs)), links, *sections)
    return join(Markup("<!doctype html>\n"), tag("html", head, body, lang="en"))


def _answers(runs: Sequence[RunFolder]) -> Markup | None:
    parts = []
    for run in runs:
        if (rows := tables.answers(run)) is not None:
            parts += [tag("h3", run.name) if len(runs) > 1 else "", rows]
    return join(*parts) if parts else None
