"""Stage 6: the table of all stages in Markdown, failures first, between two markers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from engine.base.atomic import write_text
from engine.base.errors import UserError
from engine.base.strict_json import read_object
from launch.gpu.record import DONE, FAILED, LEFT_OUT
from launch.gpu.stages import STAGES

BEGIN, END = "<!-- gpu-proof -->", "<!-- /gpu-proof -->"
FAKE = "fake: CPU, tiny shapes"
HEAD = ("stage", "case", "what", "predicted", "measured: median (least to most)", "target", "verdict")
# Verdicts in the order of the table.
ORDER = ("FAILED", "missed", "not measured", "no prediction", "left out", "met", "-")


def write_table(folder: Path, readme: Path | None = None) -> str:
    """Write folder/table.md and return it; put it between the markers of `readme` too. UserError without markers."""
    found = [read_object(folder / stage.file) for stage in STAGES if (folder / stage.file).is_file()]
    text = table(found)
    write_text(folder / "table.md", text)
    if readme is not None:
        if any(stage["fake"] for stage in found):
            raise UserError(f"--readme {readme} with results of --fake: they say nothing about a GPU")
        write_text(readme, replaced(readme.read_text(encoding="utf-8"), text, readme))
    return text


def replaced(page: str, text: str, name: Path) -> str:
    """Return the page with the text in the place of what its markers enclose. UserError if they are not there once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise UserError(f"--readme {name} needs one line {BEGIN} and after it one line {END}")
    return page[: page.index(BEGIN)] + text.rstrip() + page[page.index(END) + len(END) :]


def table(found: list[dict[str, Any]]) -> str:
    """Return the Markdown of the stages' files, with the markers."""
    rows = [row for stage in found for case in stage["cases"] for row in _rows(stage, case)]
    rows += [row for stage in found for row in _checks_met(stage)]
    ran = {stage["stage"] for stage in found}
    rows += [(f"{s.number} {s.name}", "all", "not run", "", "", "", "left out") for s in STAGES if s.number not in ran]
    rows.sort(key=lambda row: ORDER.index(row[-1]))  # stable: stages stay in order
    lines = [BEGIN, _head(found), *(f"\n- {line}" for line in _warnings(found)), ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, END]) + "\n"


def case_line(case: dict[str, Any], fake: bool) -> str:
    """Return one line for the console about a case that has ended."""
    if case["state"] == FAILED:
        return f"{case['name']}: FAILED, {case['error']}"
    if case["state"] == LEFT_OUT:
        return f"{case['name']}: left out, {case['reason']}"
    parts = [f"{line['what']} {_measured(line, fake)}{_judged(line, fake)}" for line in case["lines"]]
    return f"{case['name']}: {'; '.join(parts) or 'done'}"


def _judged(line: dict[str, Any], fake: bool) -> str:
    verdict = _verdict(line, fake)
    return "" if verdict == "-" else f", {verdict} ({line['target']})"


def _rows(stage: dict[str, Any], case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the table's rows of a case: one per number; one alone for a case without numbers."""
    where = (f"{stage['stage']} {stage['name']}", case["name"])
    if case["state"] != DONE:
        verdict = {FAILED: "FAILED"}.get(case["state"], "left out")
        yield (*where, case.get("error") or case.get("reason") or "stopped while it ran", "", "", "", verdict)
        return
    for line in case["lines"]:
        if _is_met_check(line):
            continue
        hidden = line["predicted"] is None or (stage["fake"] and line["of_machine"])
        predicted = "" if hidden else _with_unit(_number(line["predicted"]), line)
        measured, verdict = _measured(line, stage["fake"]), _verdict(line, stage["fake"])
        yield *where, line["what"], predicted, measured, line["target"] or "", verdict


def _is_met_check(line: dict[str, Any]) -> bool:
    """Whether the line says that something is right, and it is: such lines are counted, not listed."""
    return not line["of_machine"] and line["verdict"] == "met"


def _checks_met(stage: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    met = sum(_is_met_check(line) for case in stage["cases"] if case["state"] == DONE for line in case["lines"])
    if met:
        yield (
            f"{stage['stage']} {stage['name']}",
            f"{met} check{'s' * (met > 1)}",
            "listed in the stage's JSON file",
            "",
            "",
            "",
            "met",
        )


def _measured(line: dict[str, Any], fake: bool) -> str:
    spread = line["measured"]
    if spread is None:
        return "not measured"
    if fake and line["of_machine"]:
        return "fake"
    median = _with_unit(_number(spread["median"]), line)
    return median if spread["count"] == 1 else f"{median} ({_number(spread['least'])} to {_number(spread['most'])})"


def _with_unit(number: str, line: dict[str, Any]) -> str:
    return f"{number} {line['unit']}".strip()


def _verdict(line: dict[str, Any], fake: bool) -> str:
    return "-" if line["verdict"] is None or (fake and line["of_machine"]) else line["verdict"]


def _number(x: float | str) -> str:
    """Return a number in four significant digits; text, such as nan, as it is."""
    if isinstance(x, str):
        return x
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def _head(found: list[dict[str, Any]]) -> str:
    """Return the date and the card, or that the numbers are fake."""
    if any(stage["fake"] for stage in found):
        return f"**{FAKE}**, {date.today().isoformat()}: the steps of the proof were run, nothing was measured."
    about = _versions(found)
    card = f"{about.get('GPU', 'GPU unknown')}, {about.get('memory, GB', '?')} GB"
    software = ", ".join(f"{name} {about.get(name)}" for name in ("torch", "triton", "driver"))
    days = sorted({case["at"][:10] for stage in found for case in stage["cases"]})
    return f"{card}; {software}; {' to '.join(dict.fromkeys((days[0], days[-1]))) if days else 'no case has ended'}."


def _versions(found: list[dict[str, Any]]) -> dict[str, Any]:
    cases = [case for stage in found if stage["stage"] == 0 for case in stage["cases"] if case["name"] == "versions"]
    return cases[0].get("details", {}) if cases else {}


def _warnings(found: list[dict[str, Any]]) -> list[str]:
    return [] if any(stage["fake"] for stage in found) else _versions(found).get("warnings", [])
