"""DeepSpeed's monitors (CSV, Weights & Biases) for a run's metrics, chosen by --monitor or a DeepSpeed file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.base.errors import UserError
from engine.settings import RunSettings

KEYS = ("tensorboard", "wandb", "csv_monitor", "comet")  # of a DeepSpeed file
PACKAGES = {"wandb": "wandb", "comet": "comet_ml"}
OWN_FOLDERS = {"tensorboard": "tb", "csv_monitor": "csv"}  # in the run's folder


def take_monitors(
    ds_config: Mapping[str, Any], settings: RunSettings, stage: str, run_path: Path
) -> tuple[dict[str, Any], Any | None]:
    """Return (the DeepSpeed configuration without monitors, the monitors' configuration or None).

    DeepSpeed gets only the first part: it would open every monitor a second time, for a few numbers of its own. The
    fields of the file (project, group, team, output_path, job_name) win; the stage is appended to job_name, because SFT
    and PPO both log an "lr". UserError for fields that DeepSpeed refuses, and for a monitor whose package is missing.
    """
    rest = {name: value for name, value in ds_config.items() if name not in KEYS}
    chosen = {name: ds_config[name] for name in KEYS if name in ds_config}
    if odd := [name for name, value in chosen.items() if not isinstance(value, dict)]:
        raise UserError(f"--deepspeed_config: {odd[0]!r} is {chosen[odd[0]]!r}: make it an object with 'enabled'")
    if "csv" in settings.monitors:
        chosen["csv_monitor"] = {**chosen.get("csv_monitor", {}), "enabled": True}
    for name, own in OWN_FOLDERS.items():
        if name in chosen:
            given = chosen[name].get("output_path")
            job = f"{chosen[name].get('job_name', settings.lang)}-{stage}" if given else own
            chosen[name] = {**chosen[name], "output_path": given or str(run_path), "job_name": job}
    if (
        "tensorboard" in settings.monitors
        and chosen.get("tensorboard", {}).get("job_name") == OWN_FOLDERS["tensorboard"]
    ):
        del chosen["tensorboard"]  # the run writes that folder itself, and cuts it back on --resume
    if "wandb" in settings.monitors:
        default = {"project": "okapi-rlhf", "group": settings.lang}
        chosen["wandb"] = {**default, **chosen.get("wandb", {}), "enabled": True}
    if not chosen:
        return rest, None
    try:
        from deepspeed.monitor.config import get_monitor_config
    except ImportError:
        raise UserError(
            f"{', '.join(chosen)} needs the package deepspeed, which is missing: leave it out of --monitor"
        ) from None
    try:
        config = get_monitor_config(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"--deepspeed_config: {where} is {first['input']!r} ({first['msg']}): correct it") from error
    for name, package in PACKAGES.items():
        if getattr(config, name).enabled and importlib.util.find_spec(package) is None:
            raise UserError(f"the monitor {name} needs the package {package}, which is missing: pip install {package}")
    return rest, config if config.enabled else None


class Monitors:
    """Open monitors, on the first rank. DeepSpeed must be initialised before, so a run opens them at its first log."""

    def __init__(self, config: Any, settings: Mapping[str, Any], run_path: Path, step: int):
        """`step` is the first one to be written: the run's own CSV files are cut back to the steps before it."""
        from deepspeed.monitor.monitor import MonitorMaster

        self._wandb = None
        failures: tuple[type[Exception], ...] = (OSError,)
        if config.wandb.enabled:
            import wandb

            self._wandb, failures = wandb, (OSError, wandb.Error)
        try:
            self._master = MonitorMaster(config)
        except failures as error:
            raise UserError(f"a monitor cannot start ({error}): fix that, or leave it out of --monitor") from error
        if self._wandb is not None:
            # A run resumed there (WANDB_RUN_ID) has other values of --resume and the like.
            self._wandb.config.update(dict(settings), allow_val_change=True)
        own_csv = run_path / OWN_FOLDERS["csv_monitor"]
        if (csv := self._master.csv_monitor) and Path(csv.log_dir) == own_csv:
            csv.filenames += cut_csv_back(own_csv, step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._master.write_events([(name, value, step) for name, value in metrics.items()])

    def close(self) -> None:
        """Finish the W&B run, so that the next stage in this process starts its own."""
        if self._wandb is not None:
            self._wandb.finish()


def cut_csv_back(folder: Path, step: int) -> Sequence[str]:
    """Remove the rows from `step` on from a folder's CSV files. Returns the names of the files."""
    files = sorted(folder.glob("*.csv"))
    for file in files:
        header, *rows = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([header, *(row for row in rows if int(row.split(b",")[0]) < step)]))
    return [file.stem for file in files]
