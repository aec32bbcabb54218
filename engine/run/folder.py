"""The folder of a run: config.json, metrics.jsonl, samples.jsonl, scores.jsonl, tb/, model/, result.json."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engine.base.atomic import write_json
from engine.base.errors import UserError
from engine.base.mixture import parse_sources
from engine.base.strict_json import read_object
from engine.distributed.shared_folder import check_shared
from engine.distributed.world import World
from engine.run.checkpoint_files import BEST
from engine.run.lock import NAME as LOCK
from engine.run.lock import Lock
from engine.run.monitors import Monitors
from engine.settings import parse_rewards

VERSIONS = ("torch", "deepspeed", "transformers", "tokenizers", "sentencepiece", "numpy")
# Settings that say how to start or what to keep, not what to run. ZeRO's may change when a run is resumed.
NOT_COMPARED = ("overwrite", "resume", "override", "save_every", "keep", "hang_timeout", "monitor")
MAY_CHANGE = (*NOT_COMPARED, "deepspeed_config", "recompute", "park_trunk", "reward_offload")
# Values other than 0, False and None with which a setting does nothing.
OFF = {"trunk_dtype": "model", "embedding_dtype": "model"}
INPUTS = ("model", "data", "eval_data", "ptx_data")


class Run:
    """The folder of one stage. Only the first rank writes; the others know the paths."""

    def __init__(self, path: Path, stage: str, settings: Sequence[Any], world: World, monitors: Any | None = None):
        """`monitors` comes from take_monitors: where metrics go besides metrics.jsonl and TensorBoard."""
        self.path, self.stage, self.world = path, stage, world
        self.settings = {k: v for s in settings for k, v in dataclasses.asdict(s).items()}
        for name in ("reward", "data"):  # a list of one is recorded by its name
            if isinstance(words := self.settings.get(name), list) and len(words) == 1:
                self.settings[name] = words[0]
        self.template: dict[str, str] | None = None  # the prompt template, as template_choice.py records it
        self.lowered: dict[str, Any] = {}  # settings that were lowered to what the model allows
        self._lock = Lock(path)
        self._writer = None
        self._monitor_config, self._monitors = monitors, None
        self._started = time.monotonic()

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, commit and machine, to run it again."""
        return _provenance()

    @property
    def cut_files(self) -> tuple[Path, ...]:
        """Files that grow while training. A resumed run cuts them back to its checkpoint."""
        return tuple(self.path / name for name in ("metrics.jsonl", "samples.jsonl", "scores.jsonl"))

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def trunk_file(self) -> Path:
        """Where the trunk's outputs are kept while training."""
        return self.path / "trunk.bin"

    @property
    def result(self) -> dict[str, Any] | None:
        """result.json of the finished run; None when it has not finished."""
        return read_result(self.path)

    def finished_before(self) -> bool:
        """Return whether this run is already complete.

        UserError when the folder cannot be written, holds other files, holds another run (unless --overwrite), holds
        an unfinished run (unless --resume or --overwrite), or is being written by another process.
        """
        if not self.path.exists():
            check_writable(self.path)
            return False
        if not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file: give a folder")
        # Nothing else is there if a run was stopped while it started.
        if all(p.name == LOCK or p.name.startswith(".config.json.") for p in self.path.iterdir()):
            check_writable(self.path / "config.json")
            return False
        before = _settings_in(self.path)
        if before is None:
            raise UserError(f"--output {self.path} holds other files: give an empty or a new folder")
        if self.world.is_first:
            self._lock.check()
        if self.settings["overwrite"]:
            check_writable(self.path / "config.json")
            self._check_inputs_survive()
            return False
        if self.result is None and self.settings["resume"]:
            changed = differences(before, self.settings)
            if changed and not self.settings["override"]:
                raise UserError(
                    f"{self.path} was started with other settings ({'; '.join(changed)}): give the same, "
                    "or --override to go on with these"
                )
            return False
        if changed := differences(before, self.settings, NOT_COMPARED):
            raise UserError(
                f"{self.path} holds another run ({'; '.join(changed[:3])}): give another --output, or --overwrite"
            )
        if self.result is None:
            raise UserError(
                f"{self.path} holds a run that did not finish: --resume continues it, --overwrite starts it again"
            )
        return True

    def _check_inputs_survive(self) -> None:
        def listed(name: str) -> list[str]:
            words = self.settings.get(name) or []
            return [words] if isinstance(words, str) else words

        inputs = [(name, source.path) for name in INPUTS for source in parse_sources(listed(name))]
        inputs += [("reward", reward.spec) for reward in parse_rewards(listed("reward"))]
        for name, value in inputs:
            if _real(value).is_relative_to(_real(self.path)):
                raise UserError(
                    f"--{name.replace('_', '-')} {value} lies in {self.path}, which --overwrite would delete: "
                    "give another --output"
                )

    def start(self) -> None:
        """Create the folder, lock it and write config.json. With --overwrite, remove the earlier run's files first.

        Ranks wait until they see config.json. UserError if one never does, or if another process holds the lock.
        """
        self._started = time.monotonic()
        if self.world.is_first:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock.take()
                if self.settings["overwrite"] and _settings_in(self.path) is not None:
                    self._remove_files()
                config = {"stage": self.stage, "settings": self.settings, "template": self.template}
                lowered = {"lowered": self.lowered} if self.lowered else {}
                write_json(self.path / "config.json", {**config, **lowered, **self.provenance})
            except OSError as error:
                raise UserError(
                    f"--output {self.path} cannot be written ({error.strerror}): choose a folder you may write to"
                ) from error
        check_shared(self.path / "config.json", self.world)

    def _remove_files(self) -> None:
        """Remove all but the lock, config.json last: if this is cut short, the folder is still seen to hold a run."""
        for path in sorted(self.path.iterdir(), key=lambda path: path.name == "config.json"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl and send the same numbers to the monitors. UserError for NaN or infinity."""
        bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
        if bad:
            raise UserError(
                f"step {step}: {next(iter(bad))} is {next(iter(bad.values()))}; the run stops here: "
                "lower --lr, or look at the data of this step"
            )
        if not self.world.is_first:
            return
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._monitor(step, metrics)

    def _monitor(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send a step's numbers to TensorBoard and DeepSpeed's monitors, opened at the first call."""
        if self._monitor_config is not None:
            self._monitors = self._monitors or Monitors(self._monitor_config, self.settings, self.path, step)
            self._monitors.write(step, metrics)
        if "tensorboard" not in self.settings["monitor"].split(","):
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(self.path / "tb"), purge_step=step
            )  # a resumed run writes these steps again
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def sample(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the model's answers at a step to samples.jsonl."""
        if self.world.is_first:
            with open(self.path / "samples.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows)

    def scores(self, step: int, scores: Sequence[float]) -> None:
        """Append the score of each rollout of a step to scores.jsonl."""
        if self.world.is_first:
            with open(self.path / "scores.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "scores": [float(f"{x:.6g}") for x in scores]}) + "\n")

    def position(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the run: settings, versions, file lengths in bytes, seconds so far."""
        if self._writer is not None:
            self._writer.flush()
        lengths = {p.name: p.stat().st_size for p in self.cut_files if p.exists()}
        seconds = time.monotonic() - self._started
        return {"stage": self.stage, "settings": self.settings, **self.provenance, "files": lengths, "seconds": seconds}

    def why_cut(self, state: Mapping[str, Any]) -> str | None:
        """Return why a checkpoint with this state cannot be resumed (a file is shorter than it was), or None."""
        for path in self.cut_files:
            if (size := state["files"].get(path.name, 0)) > (path.stat().st_size if path.exists() else 0):
                return f"{path.name} was cut below the {size} bytes it had"
        return None

    def cut_back(self, lengths: Mapping[str, int], seconds: float) -> None:
        """Remove what was written after a checkpoint; `lengths` and `seconds` come from its `position`."""
        self._started = time.monotonic() - seconds
        if self.world.is_first:
            for path in self.cut_files:
                if size := lengths.get(path.name, 0):
                    os.truncate(path, size)
                else:
                    path.unlink(missing_ok=True)
        self.world.barrier()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as complete.

        What --keep-best has kept goes into config.json, too; its weights are in model/ now, so their file goes.
        """
        if self._writer is not None:
            self._writer.close()
        if self._monitors is not None:
            self._monitors.close()
        if self.world.is_first:
            if "kept" in result:
                config = read_object(self.path / "config.json")
                write_json(self.path / "config.json", {**config, "kept": result["kept"]})
            write_json(self.path / "result.json", {**result, "seconds": round(time.monotonic() - self._started, 1)})
            (self.path / BEST).unlink(missing_ok=True)
            self._lock.release()
        self.world.barrier()


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], not_compared: Sequence[str] = MAY_CHANGE
) -> list[str]:
    """List `name old -> new` for each setting that changed, compared as JSON.

    A setting that the earlier version did not have counts as off: it differs only if it is on now.
    """
    now = {k: v for k, v in json.loads(json.dumps(now)).items() if k not in not_compared}
    known = {k: v for k, v in now.items() if k in before or v and v != OFF.get(k)}
    return [f"{k} {before.get(k)!r} -> {v!r}" for k, v in known.items() if before.get(k) != v]


def read_result(path: Path) -> dict[str, Any] | None:
    """Read result.json from a run's folder; None when it is not there."""
    file = path / "result.json"
    return read_object(file, "delete it to run the stage again") if file.is_file() else None


def template_in_run(model_dir: str | os.PathLike[str]) -> tuple[Path, Any]:
    """Return (file, template) recorded by the run whose model this is; template is None without one."""
    folder = _real(model_dir).parent
    config = _config_in(folder) or {"settings": {}}
    return folder / "config.json", config.get("template") or config["settings"].get("template")


def check_writable(path: Path) -> None:
    """UserError unless the nearest existing folder above `path` is writable."""
    above = path.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise UserError(f"--output {path} cannot be made, {above} is a file: choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--output {path} cannot be made, you may not write to {above}: choose another place")


def _real(path: str | os.PathLike[str]) -> Path:
    """Resolve links. Unlike Path.resolve, no RuntimeError for links that point at each other."""
    return Path(os.path.realpath(path))


def _settings_in(path: Path) -> dict[str, Any] | None:
    """Read the settings from a run's config.json; None when there is no run."""
    return (_config_in(path) or {}).get("settings")


def _config_in(path: Path) -> dict[str, Any] | None:
    """Read a run's config.json; None when there is no run (a model has a config.json, too)."""
    try:
        config = read_object(path / "config.json")
    except UserError:
        return None
    return config if isinstance(config.get("settings"), dict) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # such as DeepSpeed, which a run on one rank does not need
        return None


@cache
def _provenance() -> dict[str, Any]:
    try:
        here = Path(__file__).parents[1]
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
        head = commit.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        head = None
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONS}},
        "commit": head,
        "machine": platform.platform(),
        "hardware": _hardware(),
    }


def _hardware() -> dict[str, Any]:
    """The processor, the cores this process may use, memory in GB, and each GPU with its memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):  # not Linux
        named, memory_bytes = [], None
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": named[0] if named else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": memory_bytes and round(memory_bytes / 1e9, 1),
        "gpus": [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus],
    }
