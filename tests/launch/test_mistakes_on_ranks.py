"""A user's mistake on one rank in mid-run: that rank prints its line, and all ranks end with status 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.launch.jobs import argv_of

ROOT = Path(__file__).resolve().parents[2]
REWARD = """
import os
def nothing(prompt, response):
    return float("nan") if os.environ["RANK"] == "1" and response else 0.0
"""


def test_reward_fails_on_the_second_rank(good_and_bad, tmp_path):
    (tmp_path / "my_reward.py").write_text(REWARD)
    for name in ("m", "prompts.jsonl"):
        (tmp_path / name).symlink_to(good_and_bad / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    argv = argv_of("ppo", {"reward": "my_reward:nothing", "batch-size": "4"})
    ranks = [
        subprocess.Popen(
            [sys.executable, ROOT / "launch" / "ppo.py", *argv], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [2, 2], said
    assert "error: --reward my_reward:nothing gave nan" in said[1][1]
    assert "error" not in said[0][1] and "Traceback" not in said[0][1] + said[1][1]
