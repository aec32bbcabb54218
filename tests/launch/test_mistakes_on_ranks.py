"""A user's mistake on one rank in mid-run: that rank prints its line, and all ranks end with status 2."""

from __future__ import annotations

import os
import sys

from engine.cli.parse import main
from launch import ppo
from tests.launch.jobs import argv_of
from tests.ranks import start_ranks

REWARD = """
import os
def nothing(prompt, response):
    return float("nan") if os.environ["RANK"] == "1" and response else 0.0
"""


def ppo_on_rank(folder):
    """Run the command in this folder, with its output in files named after the rank."""
    os.chdir(folder)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["launch/ppo.py", *argv_of("ppo", {"reward": "my_reward:nothing", "batch-size": "4"})]
    main(ppo.job)


def test_reward_fails_on_the_second_rank(good_and_bad, tmp_path):
    (tmp_path / "my_reward.py").write_text(REWARD)
    for name in ("m", "prompts.jsonl"):
        (tmp_path / name).symlink_to(good_and_bad / name)
    ranks = start_ranks(ppo_on_rank, 2, tmp_path)
    try:
        for rank in ranks:
            rank.join(120)
    finally:
        for rank in ranks:
            rank.kill()
    said = [[(tmp_path / f"{name}{rank}").read_text() for name in ("out", "err")] for rank in range(2)]
    assert [rank.exitcode for rank in ranks] == [2, 2], said
    assert "error: --reward my_reward:nothing gave nan" in said[1][1]
    assert "error" not in said[0][1] and "Traceback" not in said[0][1] + said[1][1]
