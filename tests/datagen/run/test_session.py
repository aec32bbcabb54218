"""Sessions: rate limits, concurrency, several endpoints, output order, equal requests, early stops."""

from __future__ import annotations

import asyncio
import random

import pytest

from datagen.api.chat import Rejected
from datagen.run.runner import Session
from datagen.simulate import Simulator
from engine.base.errors import UserError
from tests.datagen.api.api_helpers import ask_once, ask_twice, echo, numbers, quick_settings, read_lines, run_in


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", "sk-test")
    monkeypatch.setenv("no_proxy", "*")


def test_rate_limits_hold_on_the_server(tmp_path):
    """Limits set by flags, and limits learned from the first answer's headers. A period is 0.15 s."""

    async def go(folder, by_flag, **limits):
        async with Simulator(answer=echo, window_s=0.15, latency_s=0.005, **limits) as server:
            settings = quick_settings(server.url, window_s=0.15, concurrency=20, **(limits if by_flag else {}))
            summary = await run_in(folder, numbers(24), ask_twice, settings)
            assert server.counts.over_limit == 0
            assert summary.retries == 0
            assert summary.seconds > 0.3
            assert len(read_lines(folder / "out.jsonl")) == 24

    asyncio.run(go(tmp_path / "a", True, requests_per_min=15))
    asyncio.run(go(tmp_path / "b", False, requests_per_min=15))
    asyncio.run(go(tmp_path / "c", True, tokens_per_min=400))
    asyncio.run(go(tmp_path / "d", False, tokens_per_min=400))


def test_concurrency_is_never_exceeded(tmp_path):
    async def go():
        async with Simulator(answer=echo, latency_s=0.01) as server:
            await run_in(tmp_path, numbers(60), ask_once, quick_settings(server.url, concurrency=5))
            assert server.counts.most_on_their_way == 5

    asyncio.run(go())


def test_overload_lowers_concurrency(tmp_path):
    """If half of all requests get a 429, fewer are in flight at once."""

    async def go(folder, faults):
        most = 0

        async def watch(session):
            nonlocal most
            for _ in range(10_000):
                most = max(most, int(session.client._lanes.lanes[0].concurrency.limit))
                await asyncio.sleep(0.002)

        async with Simulator(answer=echo, latency_s=0.003, faults=faults) as server:
            settings = quick_settings(server.url, concurrency=64, max_attempts=30)
            tasks = []
            await run_in(
                folder,
                numbers(400),
                ask_once,
                settings,
                on_start=lambda session: tasks.append(asyncio.create_task(watch(session))),
            )
            tasks[0].cancel()
        return most

    assert asyncio.run(go(tmp_path / "calm", {})) == 64
    assert asyncio.run(go(tmp_path / "storm", {"429": 0.5})) <= 16


def test_endpoints_share_the_work_and_one_may_be_dead(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", "sk-one,sk-two")

    async def go():
        async with Simulator(answer=echo, latency_s=0.005) as one, Simulator(answer=echo, latency_s=0.005) as two:
            async with Simulator() as three:
                dead = three.url
            settings = quick_settings(one.url, two.url, dead, max_attempts=30)
            summary = await run_in(tmp_path, numbers(40), ask_once, settings)
            assert summary.rejected == 0
            counts = [server.counts.requests for server in (one, two)]
            assert sum(counts) == 40 and min(counts) >= 10

    asyncio.run(go())


def test_leaving_early_journals_requests_in_flight(tmp_path):
    async def go():
        async with Simulator(answer=echo, latency_s=0.02) as server:
            async with Session(quick_settings(server.url), tmp_path / "j") as session:
                async for outcome in session.outcomes(numbers(100), ask_once):
                    if outcome.index == 2:
                        break
            await asyncio.sleep(0.05)  # the server answers even if no client listens
            async with Session(quick_settings(server.url), tmp_path / "j") as session:
                assert len(session.journal) == sum(server.counts.answers.values())

    asyncio.run(go())


def test_exception_in_work_is_raised_and_loses_no_answer(tmp_path):
    async def broken(record, ask):
        rows = await ask_once(record, ask)
        if record["n"] == 3:
            raise ZeroDivisionError
        return rows

    async def go():
        async with Simulator(answer=echo) as server:
            with pytest.raises(ZeroDivisionError):
                await run_in(tmp_path, numbers(30), broken, quick_settings(server.url))
            answered = sum(server.counts.answers.values())
            summary = await run_in(tmp_path, numbers(30), ask_once, quick_settings(server.url))
            assert summary.asked == 30 - answered and set(server.counts.answers.values()) == {1}

    asyncio.run(go())


def test_unreadable_record_stops_the_run(tmp_path):
    def records():
        yield from numbers(5)
        raise UserError("in.jsonl:6: bad JSON")

    async def go():
        async with Simulator(answer=echo) as server:
            return await run_in(tmp_path, records(), ask_once, quick_settings(server.url))

    summary = asyncio.run(go())
    assert summary.stopped == "in.jsonl:6: bad JSON"


def test_rejection_can_name_the_faulty_answer(tmp_path):
    """Three requests run at once. The second answer is bad, and only that request is sent again."""
    is_bad = True

    async def parts(record, ask):
        replies = await asyncio.gather(*(ask([{"role": "user", "content": f"part {i}"}]) for i in range(3)))
        if is_bad and "part 1" in replies[1].text and replies[1].prompt_tokens < 10_000:
            raise Rejected("part 1 is bad", replies[1])
        return [{"parts": len(replies)}]

    async def go():
        nonlocal is_bad
        async with Simulator(answer=echo) as server:
            await run_in(tmp_path, [{}], parts, quick_settings(server.url))
            assert read_lines(tmp_path / "quarantine.jsonl")[0]["reason"] == "part 1 is bad"
            settings = quick_settings(server.url, retry_quarantined=True)
            await run_in(tmp_path, [{}], parts, settings)
            assert sorted(server.counts.answers.values()) == [1, 1, 2]

    asyncio.run(go())


def test_equal_requests_are_sent_once_unless_their_nonces_differ(tmp_path):
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


def test_output_is_in_input_order(tmp_path):
    async def uneven(record, ask):
        await asyncio.sleep(random.Random(record["n"]).uniform(0, 0.02))
        return [{"n": record["n"], "part": part} for part in range(record["n"] % 3)]

    asyncio.run(run_in(tmp_path, numbers(100), uneven, quick_settings("http://127.0.0.1:9/v1", concurrency=30)))
    rows = read_lines(tmp_path / "out.jsonl")
    assert rows == [{"n": n, "part": part} for n in range(100) for part in range(n % 3)]


def test_quarantine_file_is_deleted_if_nothing_is_rejected(tmp_path):
    (tmp_path / "quarantine.jsonl").write_text('{"index": 0}\n')
    asyncio.run(run_in(tmp_path, [], ask_once, quick_settings("http://127.0.0.1:9/v1")))
    assert not (tmp_path / "quarantine.jsonl").exists()
    assert read_lines(tmp_path / "out.jsonl") == []


def test_row_with_half_a_surrogate_pair_is_rejected(tmp_path):
    async def return_unchanged(record, ask):
        return [record]

    records = [{"x": "a\ud83d"}, {"x": "a\U0001f600"}]
    summary = asyncio.run(run_in(tmp_path, records, return_unchanged, quick_settings("http://127.0.0.1:9/v1")))
    assert (summary.rows, summary.rejected) == (1, 1)
    assert read_lines(tmp_path / "out.jsonl") == records[1:]
    (rejected,) = read_lines(tmp_path / "quarantine.jsonl")
    assert rejected == {"index": 0, "reason": "half a surrogate pair in a row", "record": records[0]}
