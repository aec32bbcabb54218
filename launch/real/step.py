"""A step of a long run: a command, skipped when it is done and resumed when it was interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LOOK_SECONDS = 0.2  # between two looks at the memory of a step


@dataclass(frozen=True)
class Step:
    """A command, and the file that exists once it is done. `resume`: pass --resume if its folder already exists."""

    name: str
    argv: tuple[str, ...]
    done: Path
    resume: Path | None = None

    def is_done(self) -> bool:
        return self.done.is_file()


def stage_of(step: Step) -> str:
    """Return the name of the launcher that a step runs, such as "sft"."""
    return Path(step.argv[0]).stem


def flag_of(step: Step, name: str, default: str = "") -> str:
    """Return the value of a flag of a step's command, or the default."""
    return step.argv[step.argv.index(name) + 1] if name in step.argv else default


def run(step: Step, log: Path) -> None:
    """Run a step in its own process and append its seconds and peak memory to `log`. UserError if it fails."""
    resume = ["--resume"] if step.resume and step.resume.is_dir() else []
    began = time.monotonic()
    process, peak = subprocess.Popen([sys.executable, *step.argv, *resume], cwd=ROOT), 0.0
    while process.poll() is None:
        peak = max(peak, peak_gb(process.pid))
        time.sleep(LOOK_SECONDS)
    if code := process.returncode:
        raise UserError(
            f"{step.name} ended with status {code}: see its last line above; the same command goes on from here"
        )
    entry = {
        "step": step.name,
        "seconds": round(time.monotonic() - began, 1),
        "peak_gb": round(peak, 2),
        "resumed": bool(resume),
    }
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def peak_gb(pid: int) -> float:
    """Return the peak of a process's resident memory so far; 0.0 once it has ended.

    Not getrusage: a process inherits its peak from the process that started it.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    kib = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), "0")
    return int(kib) * 1024 / 1e9
