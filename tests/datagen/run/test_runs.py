"""Interrupted runs: killed at random points, Ctrl-C, started twice, disk full."""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys

import pytest

from datagen.api.chat import make_request
from datagen.api.journal import Journal
from datagen.run import command
from datagen.simulate import Simulator
from engine.base.errors import UserError
from tests.datagen.api.api_helpers import ask_twice, echo, numbers, quick_settings, read_lines, run_in

RECORDS = 25


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", "sk-test")
    monkeypatch.setenv("no_proxy", "*")


def expected_rows(count=RECORDS):
    return [{"n": n, "replies": [f"say {n}", f"and 0 {n}"]} for n in range(count)]


def all_requests(settings):
    """Return the journal key -> server key of all requests of `ask_twice`."""
    keys = {}
    for record in numbers(RECORDS):
        messages = [{"role": "user", "content": f"say {record['n']}"}]
        for turn in range(2):
            request = make_request(settings.model, settings.max_tokens, messages, temperature=0)
            keys[request.key] = hashlib.blake2b(request.body(), digest_size=16).hexdigest()
            reply = {"role": "assistant", "content": echo(messages)}
            messages = [*messages, reply, {"role": "user", "content": f"and {turn} {record['n']}"}]
    return keys


def child_run(folder, settings, stderr_path=None, work=ask_twice, count=RECORDS):
    """Body of a child process: one run. Exit status 0 only if the run is complete."""
    if stderr_path is not None:
        os.dup2(os.open(stderr_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    try:
        asyncio.run(run_in(folder, numbers(count), work, settings))
    except UserError as error:
        os.write(2, f"error: {error}\n".encode())
        os._exit(2)
    os._exit(0)


def start(target, *args):
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


async def ended(process):
    while process.is_alive():
        await asyncio.sleep(0.002)
    return process.exitcode


async def kill_until_complete(folder, max_kills, rng):
    """Restart a run and kill it after a random time, until one completes. Returns the number of kills."""
    faults = {"500": 0.05, "reset_half": 0.05, "429": 0.05}
    async with Simulator(answer=echo, latency_s=0.002, faults=faults) as server:
        settings = quick_settings(server.url, concurrency=4, max_attempts=40)
        keys = all_requests(settings)
        killed, status = 0, None
        while status != 0:
            journaled = {}
            if (folder / "journal").exists():
                journal = Journal(folder / "journal")
                journaled = {key: server.counts.answers[keys[key]] for key in keys if key in journal}
                journal.release()
                assert all(journaled.values())
            process = start(child_run, folder, settings)
            if killed < max_kills:
                await asyncio.sleep(rng.uniform(0.0, 0.08))
                process.kill()
            status = await ended(process)
            killed += status != 0
            # Requests in the journal at the start of the run were not sent again.
            assert all(server.counts.answers[keys[key]] == count for key, count in journaled.items())
        assert len(server.counts.answers) == len(keys)
    assert read_lines(folder / "out.jsonl") == expected_rows()
    # An answer can be paid twice only if the process was killed between its arrival and its fsync.
    paid_twice = sum(server.counts.answers.values()) - len(keys)
    assert 0 <= paid_twice <= killed * settings.concurrency
    assert sorted(path.name for path in folder.iterdir()) == ["journal", "out.jsonl"]
    return killed


async def kill(folder, kills, seed):
    """Kill runs `kills` times in total, over as many complete jobs as needed."""
    rng, killed, jobs = random.Random(seed), 0, 0
    while killed < kills:
        (folder / str(jobs)).mkdir()
        killed += await kill_until_complete(folder / str(jobs), kills - killed, rng)
        jobs += 1


def test_killed_at_five_random_points(tmp_path):
    asyncio.run(kill(tmp_path, 5, seed=1))


@pytest.mark.slow
def test_killed_at_fifty_random_points(tmp_path):
    asyncio.run(kill(tmp_path, 50, seed=2))


def test_second_process_is_refused(tmp_path):
    """One process runs. The other prints an error and sends no requests."""

    async def go():
        async with Simulator(answer=echo, latency_s=0.01) as server:
            settings = quick_settings(server.url)
            both = [start(child_run, tmp_path, settings, tmp_path / f"stderr{i}") for i in range(2)]
            statuses = [await ended(process) for process in both]
            assert sorted(statuses) == [0, 2]
            assert set(server.counts.answers.values()) == {1} and len(server.counts.answers) == 2 * RECORDS
        message = (tmp_path / f"stderr{statuses.index(2)}").read_text()
        assert "is being written by another run" in message and message.count("\n") == 1

    asyncio.run(go())
    assert read_lines(tmp_path / "out.jsonl") == expected_rows()


def test_disk_full_for_a_while(tmp_path):
    """A file-size limit of the kernel simulates the full disk. It is raised once the run reports that it waits."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        os.dup2(os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT), 2)
        log = lambda line: os.write(2, line.encode())  # noqa: E731
        asyncio.run(run_in(tmp_path, numbers(RECORDS), ask_twice, settings, log=log))
        os._exit(0)

    async def go():
        nonlocal settings
        async with Simulator(answer=echo, latency_s=0.002) as server:
            settings = quick_settings(server.url)
            process = start(limited)
            while not ((tmp_path / "stderr").exists() and b"is full" in (tmp_path / "stderr").read_bytes()):
                assert process.is_alive()
                await asyncio.sleep(0.005)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            assert await ended(process) == 0
            assert set(server.counts.answers.values()) == {1}

    settings = None
    asyncio.run(go())
    assert read_lines(tmp_path / "out.jsonl") == expected_rows()


def run_as_command(folder, url, work=ask_twice, count=RECORDS, **changes):
    """Body of a child process: `command._watched_run`, with signals and the progress line."""
    settings = quick_settings(url, **changes)
    files = command.RunFiles(folder / "out.jsonl", folder / "journal", folder / "quarantine.jsonl")
    sys.stderr = (folder / "stderr").open("w")
    summary = asyncio.run(command._watched_run(numbers(count), work, settings, files))
    (folder / "summary").write_text(json.dumps([summary.stopped, summary.asked, summary.records]))
    os._exit(0)


def test_ctrl_c_drains_and_loses_nothing(tmp_path):
    async def go():
        async with Simulator(answer=echo, latency_s=0.05) as server:
            process = start(run_as_command, tmp_path, server.url)
            while server.counts.on_their_way < 8:
                await asyncio.sleep(0.002)
            os.kill(process.pid, signal.SIGINT)
            assert await ended(process) == 0
            stopped, asked, records = json.loads((tmp_path / "summary").read_text())
            assert stopped == "interrupted" and asked == sum(server.counts.answers.values()) < 2 * RECORDS
            assert "interrupted: waiting for" in (tmp_path / "stderr").read_text()
            assert len(read_lines(tmp_path / "out.jsonl")) == records < RECORDS
            summary = await run_in(tmp_path, numbers(RECORDS), ask_twice, quick_settings(server.url))
            assert summary.asked == 2 * RECORDS - asked
            assert set(server.counts.answers.values()) == {1}

    asyncio.run(go())
    assert read_lines(tmp_path / "out.jsonl") == expected_rows()


def test_second_ctrl_c_aborts(tmp_path):
    async def go():
        async with Simulator(answer=echo, latency_s=60) as server:
            timeouts = {"first_byte_timeout_s": 90, "total_timeout_s": 90}
            process = multiprocessing.get_context("fork").Process(
                target=run_as_command, args=(tmp_path, server.url), kwargs=timeouts
            )
            process.start()
            while server.counts.on_their_way < 1:
                await asyncio.sleep(0.002)
            for _ in range(2):
                await asyncio.sleep(0.05)
                assert process.is_alive()
                os.kill(process.pid, signal.SIGINT)
            assert await asyncio.wait_for(ended(process), 5) == 0

    asyncio.run(go())
    journal = Journal(tmp_path / "journal")
    assert len(journal.unsettled) == 1  # it may have been charged
    journal.release()
