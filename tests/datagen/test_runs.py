"""Runs that are cut short: killed at random points, interrupted, started twice, out of money or out of disk."""

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

from datagen import command
from datagen.chat import make_request
from datagen.journal import Journal
from datagen.pricing import estimate_tokens, token_bound
from datagen.simulate import Simulator
from engine.errors import UserError
from tests.datagen.api_helpers import ask_once, ask_twice, echo, numbers, quick_settings, read_lines, run_in

RECORDS = 25
BUDGET_PRICES = {"usd_per_m_prompt": 1e6, "usd_per_m_completion": 1e6}  # a dollar a token


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", "sk-test")
    monkeypatch.setenv("no_proxy", "*")


def expected_rows(count=RECORDS):
    return [{"n": n, "replies": [f"say {n}", f"and 0 {n}"]} for n in range(count)]


def all_requests(settings):
    """Every request of `ask_twice` for the records: the journal's key -> the server's."""
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
    """One run in a process of its own; exit status 0 only if it was complete."""
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


async def kill_until_complete(folder, most_kills, rng):
    """Runs again and again, each killed after a random time, until one of them is complete; how many were killed."""
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
            if killed < most_kills:
                await asyncio.sleep(rng.uniform(0.0, 0.08))
                process.kill()
            status = await ended(process)
            killed += status != 0
            # What was in the journal when the run began was not asked again.
            assert all(server.counts.answers[keys[key]] == count for key, count in journaled.items())
        assert len(server.counts.answers) == len(keys)
    assert read_lines(folder / "out.jsonl") == expected_rows()
    # An answer can be paid for twice only where the process was killed between its arrival and its fsync.
    paid_twice = sum(server.counts.answers.values()) - len(keys)
    assert 0 <= paid_twice <= killed * settings.concurrency
    assert sorted(path.name for path in folder.iterdir()) == ["journal", "out.jsonl"]
    return killed


async def kill(folder, kills, seed):
    """So many kills, over as many whole jobs as that takes."""
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


def test_two_processes_at_once(tmp_path):
    """One of them works, the other says so and asks nothing."""

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


def test_a_disk_that_is_full_for_a_while(tmp_path):
    """A limit on the size of files, as the kernel enforces it, raised when the run says that it waits."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        os.dup2(os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT), 2)
        tell = lambda line: os.write(2, line.encode())  # noqa: E731
        asyncio.run(run_in(tmp_path, numbers(RECORDS), ask_twice, settings, tell=tell))
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
    """`command._watched_run` in a process of its own, with signals and the progress line."""
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


def test_a_second_ctrl_c_waits_for_nothing(tmp_path):
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


def cost(n):
    """Dollars of one `ask_once`, at a dollar a token, as the simulator counts, and the most it could cost."""
    request = make_request("gpt-4o-mini", 64, [{"role": "user", "content": f"say {n}"}])
    answer = echo(request.messages)
    return 3 + 4 + estimate_tokens(f"say {n}") + estimate_tokens(answer), sum(token_bound(request))


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_budget_is_never_passed_and_well_used(tmp_path, concurrency):
    one, most = cost(0)
    budget = 7.5 * one + most

    async def go():
        async with Simulator(answer=echo, latency_s=0.002) as server:
            settings = quick_settings(server.url, budget_usd=budget, concurrency=concurrency, **BUDGET_PRICES)
            first = await run_in(tmp_path, numbers(10), ask_once, settings)
            assert f"--budget ${budget:.4f} reached" in first.stopped
            assert first.usd <= budget and first.asked == 8 == len(read_lines(tmp_path / "out.jsonl"))
            again = await run_in(tmp_path, numbers(10), ask_once, settings)  # earlier runs count
            assert again.asked == 0 and "reached" in again.stopped
            raised = quick_settings(server.url, budget_usd=2 * budget, **BUDGET_PRICES)
            assert (await run_in(tmp_path, numbers(10), ask_once, raised)).asked == 2

    asyncio.run(go())


def test_what_may_have_been_charged_counts_against_the_budget(tmp_path):
    """Every answer is lost on its way: the budget ends the run although nothing was surely paid."""
    _, most = cost(0)

    async def go():
        async with Simulator(answer=echo, faults={"reset_half": 1.0}) as server:
            changes = {"budget_usd": 3.5 * most, "concurrency": 1, "max_attempts": 30}
            settings = quick_settings(server.url, **changes, **BUDGET_PRICES)
            summary = await run_in(tmp_path, numbers(1), ask_once, settings)
            assert server.counts.requests == 3
            assert summary.usd == 0 and summary.maybe_usd == pytest.approx(3 * most)
            assert "perhaps for answers that never came" in summary.stopped

    asyncio.run(go())


def test_a_budget_needs_a_price(tmp_path):
    settings = quick_settings("http://127.0.0.1:9/v1", model="own-model", budget_usd=1.0)
    with pytest.raises(UserError, match="--budget needs the price of own-model"):
        asyncio.run(run_in(tmp_path, numbers(1), ask_once, settings))
    Journal(tmp_path / "journal").release()  # the lock was given up


def test_equal_requests_are_asked_once_and_a_nonce_asks_again(tmp_path):
    async def same(record, ask):
        reply = await ask([{"role": "user", "content": "the same"}], nonce=record.get("nonce"))
        return [{"text": reply.text}]

    async def go(records):
        async with Simulator(answer=echo, latency_s=0.01) as server:
            await run_in(tmp_path, records, same, quick_settings(server.url))
            assert len(read_lines(tmp_path / "out.jsonl")) == len(records)
            return server.counts.requests

    assert asyncio.run(go([{}] * 30)) == 1
    assert asyncio.run(go([{"nonce": n} for n in range(5)])) == 5


def test_output_is_in_input_order_whoever_answers_first(tmp_path):
    async def uneven(record, ask):
        await asyncio.sleep(random.Random(record["n"]).uniform(0, 0.02))
        return [{"n": record["n"], "part": part} for part in range(record["n"] % 3)]

    asyncio.run(run_in(tmp_path, numbers(100), uneven, quick_settings("http://127.0.0.1:9/v1", concurrency=30)))
    rows = read_lines(tmp_path / "out.jsonl")
    assert rows == [{"n": n, "part": part} for n in range(100) for part in range(n % 3)]


def test_the_quarantine_of_an_earlier_run_goes_when_nothing_is_left_in_it(tmp_path):
    (tmp_path / "quarantine.jsonl").write_text('{"index": 0}\n')
    asyncio.run(run_in(tmp_path, [], ask_once, quick_settings("http://127.0.0.1:9/v1")))
    assert not (tmp_path / "quarantine.jsonl").exists()
    assert read_lines(tmp_path / "out.jsonl") == []


def test_half_a_character_in_a_record_is_written_as_an_escape(tmp_path):
    async def passed_on(record, ask):
        return [record]

    asyncio.run(run_in(tmp_path, [{"x": "a\ud83d"}], passed_on, quick_settings("http://127.0.0.1:9/v1")))
    assert read_lines(tmp_path / "out.jsonl") == [{"x": "a\ud83d"}]
