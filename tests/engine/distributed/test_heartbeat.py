"""Name the rank that hangs: by rule, between two heartbeats, and in a run with one stopped process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engine.distributed.heartbeat import FAILED, LEFT, SILENT_S, Heartbeat, Peer, verdict

ROOT = Path(__file__).resolve().parents[3]
WELL = Peer(heard_at=100.0, moved_at=100.0, moves=9, phase_number=4, phase="step 2")


def named(peers, now=101.0, timeout_s=30.0, me=0):
    return verdict(peers, me, now, timeout_s)


def test_no_rank_is_named_while_one_moves():
    assert named([WELL, replace(WELL, moved_at=1.0)]) is None
    assert named([WELL, WELL], now=129.0) is None


def test_silent_rank_is_named_while_others_move():
    ranks, line = named([WELL, replace(WELL, heard_at=60.0), replace(WELL, heard_at=50.0)])
    assert ranks == [1, 2] and line.startswith("ranks 1, 2 have not been heard of for 41 s, last in step 2")
    assert named([WELL, replace(WELL, heard_at=60.0)], timeout_s=1800.0) is None
    silent = replace(WELL, heard_at=101.0 - SILENT_S - 0.5)
    assert named([WELL, silent], timeout_s=1800.0)[0] == [1]


@pytest.mark.parametrize("peer", [Peer(), replace(WELL, heard_at=0.0, state=LEFT)])
def test_rank_never_heard_from_or_gone_is_not_judged(peer):
    assert named([WELL, peer]) is None


def test_rank_in_the_earliest_phase_is_named_when_none_moves():
    still = replace(WELL, moved_at=60.0)
    ranks, line = named([replace(still, waits=True), replace(still, phase_number=3, phase="step 1"), still])
    assert ranks == [1] and "rank 1 has not moved for 41 s, in step 1" in line and "--hang-timeout is 30" in line
    assert named([replace(still, waits=True), still])[0] == [1]  # in one phase: the one that waits for no other
    assert named([still, still])[0] == [0, 1]
    assert named([replace(still, waits=True), replace(still, waits=True)])[0] == [0, 1]
    assert named([still, still], timeout_s=42.0) is None


def test_without_phase_only_silence_counts():
    """Sampling and evaluation may take any time between two collectives."""
    quiet = replace(WELL, moved_at=0.0, phase=None)
    assert named([quiet, quiet]) is None
    assert "before or after training" in named([quiet, replace(quiet, heard_at=1.0)])[1]


ENDED = []


def end(rank, status):
    """Record the exit status instead of ending the process."""
    ENDED.append((rank, status))


def two(timeout_s=30.0):
    ENDED.clear()
    pair = [Heartbeat(rank, 2, "localhost", timeout_s, partial(end, rank)) for rank in (0, 1)]
    for heartbeat in pair:
        heartbeat.start([h.address for h in pair], pair[0].key)
    return pair


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_heartbeats_exchange_state():
    first, second = two(timeout_s=5.0)
    second.at("step 7")
    second.waits(True)
    wait_until(lambda: first.peers[1].phase == "step 7" and first.peers[1].waits)
    moves = first.peers[1].moves
    second.tick()
    wait_until(lambda: first.peers[1].moves > moves)
    second.leave()
    wait_until(lambda: first.peers[1].state == LEFT)
    first.leave()


def test_datagrams_from_strangers_are_ignored():
    first, second = two(timeout_s=5.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for text in (b"", b"\xff", b"[]", b"7", b'["wrong", 1, 1, 1, "x", false, "failed", "", true]', b"[" * 9000):
            stranger.sendto(text, first.address)
    second.at("step 8")
    wait_until(lambda: first.peers[1].phase == "step 8")
    assert first.peers[1].state != FAILED
    second.leave(), first.leave()


def test_shared_mistake_is_printed_once_and_own_mistake_too():
    said = []
    first, second = two(timeout_s=5.0)
    other = threading.Thread(target=second.fail, args=("the same", lambda: said.append(1)))
    other.start()
    first.fail("the same", lambda: said.append(0))
    other.join()
    assert said == [0]
    assert ENDED == []
    first, second = two(timeout_s=5.0)
    first.waits(True)  # for the rank that fails
    second.fail("rank 1's own", lambda: said.append(1))
    assert said == [0, 1] and first.peers[1].state == FAILED and ENDED == [(0, 2)]
    first.leave()


def start(folder, ranks, code, *argv):
    """Start a program on several ranks. Keep its imports few: each start costs seconds."""
    (folder / "program.py").write_text(code)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, folder / "program.py", *argv], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]  # fmt: skip


LOOP = """
import sys, time, torch
from engine.distributed.world import start_world
world, heard = start_world(2.0), False
for step in range(10**6):
    world.at(f"step {step + 1}")
    if step == 3 and world.rank == 1 and sys.argv[1] == "sleep":
        print("there", flush=True)
        time.sleep(10**6)
    if not heard and world.rank == 0 and world.heartbeat.peers[1].phase:
        print("heard", flush=True)
        heard = True
    time.sleep(0.001)
    world.sum(torch.ones(3))
"""


@pytest.mark.parametrize("how", ["stop", pytest.param("sleep", marks=pytest.mark.slow)])
def test_hanging_rank_is_named_by_the_other(tmp_path, how):
    """A signal stops the whole process, or only its main thread sleeps. --hang-timeout is 2 s."""
    first, second = start(tmp_path, 2, LOOP, how)
    try:
        if how == "stop":
            assert first.stdout.readline() == "heard\n"
            second.send_signal(signal.SIGSTOP)
        else:
            assert second.stdout.readline() == "there\n"
        began = time.monotonic()
        _, err = first.communicate(timeout=60)
        seconds = time.monotonic() - began
    finally:
        second.kill(), first.kill()
        second.communicate()
    words = "been heard of" if how == "stop" else "moved"
    assert re.fullmatch(rf"error: rank 1 has not {words} for \d+ s,( last)? in step \d+.*", err.splitlines()[-1]), err
    assert first.returncode == 1 and seconds < 10
