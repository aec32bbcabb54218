"""The embedded chain in seconds: train SFT, reward model and PPO from nothing, as launch/ppo.py does.

Run it as a program, by any launcher, with launch/ppo.py's flags.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.cli.parse import main
from launch import common, ppo

RECORDS = 300
FLAGS = ("--lang", "ne", "--max-steps", "4", "--batch-size", "16", "--max-new-tokens", "12", "--save-every", "2")

if __name__ == "__main__":
    common.DEMO_RECORDS = RECORDS
    sys.argv[1:1] = FLAGS
    main(ppo.job)
