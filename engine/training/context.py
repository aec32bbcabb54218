"""What a trainer runs with: its settings, the ranks, the run's folder, the console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.base.mixture import Mixture
from engine.cli.console import Console
from engine.distributed.world import World
from engine.run.folder import Run
from engine.settings import BatchSettings, OptimizerSettings, RunSettings


@dataclass(frozen=True)
class Context:
    """The same for every trainer; `stage` holds the settings of its own (SFTSettings, RewardSettings, PPOSettings)."""

    run_settings: RunSettings
    optimizer: OptimizerSettings
    batch: BatchSettings
    stage: Any
    world: World
    run: Run
    console: Console
    ds_config: dict[str, Any]
    mixture: Mixture | None = None  # the files of the training records; None for one list
