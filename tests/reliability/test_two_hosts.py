"""Tests of two hosts: same bits as one host; if a host dies or is cut off, one error line; --resume continues."""

from __future__ import annotations

import json

import pytest

from tests.reliability.remains import assert_same
from tests.reliability.two_hosts import ENDS_WITHIN_S, TwoHosts, main

LOSSES = {"sft": "loss/sft", "reward": "loss/reward", "ppo": "loss/policy_avg"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hosts_with_faults_equal_one_host(tmp_path):
    try:
        with TwoHosts(tmp_path):
            pass
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")
    seen = main(tmp_path / "runs")
    for fault, words in {"killed": "another rank is gone", "cut off": "rank 1 has not been heard of for"}.items():
        seconds, lines = seen[fault]
        assert seconds < ENDS_WITHIN_S
        assert len(lines[0]) == 1 and words in lines[0][0] and "--resume" in lines[0][0], lines
    for stage, loss in LOSSES.items():
        two, one, alone = (tmp_path / "runs" / name / "ne" / stage for name in ("two", "one", "alone"))
        assert_same(two, one)
        rows = [[json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()] for run in (two, alone)]
        assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
        rows = [[row for row in of_run if loss in row] for of_run in rows]  # rows of held-out losses have others
        assert rows[0] and len(rows[0]) == len(rows[1]), stage
        for ours, theirs in zip(*rows):
            assert ours[loss] == pytest.approx(theirs[loss], rel=1e-5, abs=1e-6), (stage, ours["step"])
