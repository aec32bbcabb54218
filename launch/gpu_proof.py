"""Prove the engine on this machine's GPU and write a table: `python launch/gpu_proof.py --out DIR`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from engine.base.errors import UserError
from engine.base.strict_json import read_object
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.device import why_unseen
from engine.settings import check_above_zero, flag
from launch.gpu import processes
from launch.gpu.stages import STAGES, TABLE, Stage
from launch.gpu.table import write_table

MOST_S = 510.0  # of one stage, so that it ends within nine minutes


@dataclass(frozen=True)
class ProofSettings:
    """Which stages run, and how long."""

    _argument_group_name = "proof"
    out: str = flag("folder of the results: a JSON file for each stage, and table.md")
    stage: list[int] | None = flag(
        f"stages to run, 0 to {TABLE}; stage 0 runs before any other (default: all)", None
    )  # fmt: skip
    budget_minutes: float = flag("minutes for all stages together; the dearest cases are left out beyond it", 28.0)
    again: bool = flag("run the stages again that have ended", False)
    fake: bool = flag("run every stage on tiny shapes on the CPU, without a GPU: a rehearsal", False)
    rehearse_failure: int | None = flag("with --fake: let the first case of this stage fail", None)
    readme: str | None = flag("a page in which the table replaces what its two gpu-proof markers enclose", None)

    def __post_init__(self) -> None:
        check_above_zero(self, "budget_minutes")
        for number in (*(self.stage or ()), *([] if self.rehearse_failure is None else [self.rehearse_failure])):
            if not 0 <= number <= TABLE:
                raise UserError(f"--stage {number} is unknown: give 0 to {TABLE}")
        if self.rehearse_failure is not None and not self.fake:
            raise UserError("--rehearse-failure is given without --fake: a real proof needs no made failure")

    @property
    def stages(self) -> list[Stage]:
        """The stages to run, those that measure. Stage 0 is always among them, because the others predict from it."""
        chosen = set(range(TABLE) if self.stage is None else self.stage) - {TABLE}
        return [stage for stage in STAGES if stage.number in chosen | ({0} if chosen else set())]


def job(argv: Sequence[str]) -> None:
    """Run the stages that have not ended, cheapest first, then write and print the table."""
    (settings,) = parse_settings((ProofSettings,), argv, "python launch/gpu_proof.py", __doc__.split("\n")[0])
    console, folder = Console(), Path(settings.out).resolve()
    if settings.stages and not settings.fake and not torch.cuda.is_available():
        raise UserError(f"no GPU is visible here ({why_unseen() or 'see nvidia-smi'}): rehearse with --fake")
    folder.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + 60 * settings.budget_minutes
    for stage in settings.stages:
        if skipped := why_skipped(stage, folder, settings):
            console.say(f"\n[{stage.number}] {stage.name}: {skipped}")
            continue
        later = sum(other.least_s for other in settings.stages if other.number > stage.number)
        seconds = max(0.0, min(MOST_S, ends_at - time.monotonic() - later))
        if not seconds:
            console.say(f"\n[{stage.number}] {stage.name}: left out, the budget is used up")
            continue
        console.say(f"\n[{stage.number}] {stage.name}, up to {seconds:.0f} s: {stage.shows}")
        processes.run(stage, folder, settings.fake, seconds, settings.rehearse_failure == stage.number)
    console.say(f"\n{write_table(folder, Path(settings.readme) if settings.readme else None)}")
    console.say(f"  table: {folder / 'table.md'}")


def why_skipped(stage: Stage, folder: Path, settings: ProofSettings) -> str | None:
    """Return why a stage is not run: it is complete. With --again its file is removed instead.

    UserError for results of another kind: those of --fake beside real ones.
    """
    file = folder / stage.file
    if not file.is_file():
        return None
    before = read_object(file)
    if before["fake"] != settings.fake:
        kind = "with" if before["fake"] else "without"
        raise UserError(f"{file} was made {kind} --fake: give another --out")
    if settings.again and (stage.number or settings.stage is None or 0 in settings.stage):
        file.unlink()
        return None
    return "complete, its results are kept (--again measures anew)" if before["complete"] else None


if __name__ == "__main__":
    main(job)
