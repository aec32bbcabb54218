"""A step of a long run: a command, skipped when it is done and resumed when it was interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import UserError
from engine.cli.interrupt import Interrupt

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
    """Run a step in its own process and append its seconds, peak memory and exit status to `log`.

    Ctrl-C and SIGTERM reach the process, which saves what it has; then SystemExit. UserError if the step fails.
    """
    resume = ["--resume"] if step.resume and step.resume.is_dir() else []
    began, peak, is_told = time.monotonic(), 0.0, False
    with Interrupt("") as interrupt:
        process = subprocess.Popen([sys.executable, *step.argv, *resume], cwd=ROOT)
        while process.poll() is None:
            peak = max(peak, peak_gb(process.pid))
            if interrupt.signal == signal.SIGTERM and not is_told:  # Ctrl-C goes to all processes of a terminal
                process.terminate()
                is_told = True
            time.sleep(LOOK_SECONDS)
    entry = {
        "step": step.name,
        "seconds": round(time.monotonic() - began, 1),
        "peak_gb": round(peak, 2),
        "resumed": bool(resume),
        "status": process.returncode,
    }
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    if interrupt.signal:
        print(f"{step.name} was stopped: the same command goes on from here", file=sys.stderr, flush=True)
        interrupt.check()
    if code := process.returncode:
        raise UserError(
            f"{step.name} ended with status {code}: see its last line above; the same command goes on from here"
        )


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
