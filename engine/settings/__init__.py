"""Settings of training and sampling, as frozen dataclasses that become flags; presets supply the numbers of a stage.

Each file is a table: a field per flag with its help and default, and each flag's limits below its group. Commands with
flags of their own (evaluate, serve, chat, plan, convert, the benchmarks) define them beside their code with `flag` and
the checks.
"""

from __future__ import annotations

from engine.settings.flags import (
    DTYPE_HELP,
    DTYPES,
    check_above_zero,
    check_at_least,
    check_room,
    check_top_layers,
    flag,
    split_of,
)
from engine.settings.heldout import HeldOutSettings
from engine.settings.ppo import FEWEST_SAMPLES, PPOSettings
from engine.settings.pretrain import PretrainSettings, TextRunSettings
from engine.settings.rewards import Reward, is_function_name, parse_rewards
from engine.settings.run import BatchSettings, OptimizerSettings, RunSettings
from engine.settings.sample import ResponseSettings, SampleSettings
from engine.settings.supervised import DPOSettings, RankingSettings, RewardSettings, SFTSettings
from engine.settings.trunk import TRUNK_DTYPES, TrunkSettings

__all__ = [
    "BatchSettings",
    "DPOSettings",
    "DTYPES",
    "DTYPE_HELP",
    "FEWEST_SAMPLES",
    "HeldOutSettings",
    "OptimizerSettings",
    "PPOSettings",
    "PretrainSettings",
    "RankingSettings",
    "ResponseSettings",
    "Reward",
    "RewardSettings",
    "RunSettings",
    "SFTSettings",
    "STAGE_SETTINGS",
    "SampleSettings",
    "TRUNK_DTYPES",
    "TextRunSettings",
    "TrunkSettings",
    "check_above_zero",
    "check_at_least",
    "check_room",
    "check_top_layers",
    "flag",
    "is_function_name",
    "parse_rewards",
    "split_of",
]

# Settings classes of each training stage, in the order in which its launcher unpacks them.
STAGE_SETTINGS = {
    stage: (RunSettings, OptimizerSettings, BatchSettings, own)
    for stage, own in (("sft", SFTSettings), ("reward", RewardSettings), ("dpo", DPOSettings), ("ppo", PPOSettings))
}
STAGE_SETTINGS["pretrain"] = (TextRunSettings, OptimizerSettings, BatchSettings, PretrainSettings)
