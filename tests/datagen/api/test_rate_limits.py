"""Rate limits: windows never exceed their limit, valid headers count, overload halves concurrency, waiting is fair."""

from __future__ import annotations

import asyncio
import email.utils
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.api.rate_limits import Concurrency, Lane, Lanes, Window, parse_duration, read_headers
from tests.datagen.api.api_helpers import run_virtually


def max_in_any_window(times_amounts, window_s):
    """Return the largest sum of amounts in any half-open period of window_s."""
    return max(sum(a for t, a in times_amounts if start <= t < start + window_s) for start, _ in times_amounts)


async def ask_many(lanes, requests, latency, rng):
    """Send requests (reserved, used). Returns (arrival time at the server, used) for each."""
    loop = asyncio.get_running_loop()
    arrived = []

    async def one(reserved, used):
        index = await lanes.acquire(reserved)
        delay_s = rng.uniform(0, latency)
        await asyncio.sleep(delay_s)
        arrived.append((loop.time(), used))
        await asyncio.sleep(latency - delay_s)
        lanes.lanes[index].concurrency.record_success()
        lanes.lanes[index].release(reserved, used, loop.time())
        lanes.wake()

    await asyncio.gather(*(one(*request) for request in requests))
    return arrived


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32), st.floats(0.01, 30))
def test_request_limit_is_never_exceeded(limit, seed, latency):
    rng = random.Random(seed)
    lanes = Lanes([Lane(50, limit, None, 60.0)])
    arrived = run_virtually(ask_many(lanes, [(1, 1)] * (3 * limit + 5), latency, rng))
    assert len(arrived) == 3 * limit + 5
    assert max_in_any_window(arrived, 60.0) <= limit


@settings(max_examples=25, deadline=None)
@given(st.integers(500, 5000), st.integers(0, 2**32), st.floats(0.01, 30))
def test_token_limit_is_never_exceeded(limit, seed, latency):
    rng = random.Random(seed)
    requests = [(reserved, rng.randint(1, reserved)) for reserved in (rng.randint(1, 500) for _ in range(40))]
    arrived = run_virtually(ask_many(Lanes([Lane(50, None, limit, 60.0)]), requests, latency, rng))
    assert max_in_any_window(arrived, 60.0) <= limit


def test_nine_tenths_of_the_limit_are_used():
    """A limit of 120 per minute, with 0.5 s latency: at least nine tenths of it are used."""
    lanes = Lanes([Lane(100, 120, None, 60.0)])
    arrived = run_virtually(ask_many(lanes, [(1, 1)] * 600, 0.5, random.Random(0)))
    minutes = (arrived[-1][0] - arrived[0][0]) / 60
    assert 600 / minutes > 0.9 * 120


def test_starts_are_spread_evenly():
    """Servers divide the minute into shorter periods: no second gets more than two seconds' share of the limit."""
    arrived = run_virtually(ask_many(Lanes([Lane(100, 600, None, 60.0)]), [(1, 1)] * 300, 0.001, random.Random(0)))
    assert max_in_any_window(arrived, 1.0) <= 21


def test_request_above_the_limit_runs_alone():
    arrived = run_virtually(ask_many(Lanes([Lane(9, None, 100, 60.0)]), [(500, 50), (500, 50)], 1.0, random.Random(0)))
    assert len(arrived) == 2
    assert arrived[1][0] - arrived[0][0] >= 60


def test_each_key_has_its_own_limit():
    lanes = Lanes([Lane(50, 10, None, 60.0), Lane(50, 10, None, 60.0)])
    arrived = run_virtually(ask_many(lanes, [(1, 1)] * 20, 0.1, random.Random(0)))
    assert max(t for t, _ in arrived) < 61


def test_first_come_first_served():
    async def go():
        lanes = Lanes([Lane(1, None, None, 60.0)])
        order = []

        async def one(number):
            index = await lanes.acquire(1)
            order.append(number)
            await asyncio.sleep(1)
            lanes.lanes[index].release(1, 1, asyncio.get_running_loop().time())
            lanes.wake()

        await asyncio.gather(*map(one, range(9)))
        return order

    assert run_virtually(go()) == list(range(9))


def test_cancelled_waiter_acquires_nothing():
    async def go():
        lanes = Lanes([Lane(1, None, None, 60.0)])
        index = await lanes.acquire(1)
        waiting = [asyncio.create_task(lanes.acquire(1)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        lanes.lanes[index].release(1, 1, 0.0)
        lanes.wake()
        assert await waiting[1] == 0
        assert lanes.lanes[0].concurrency.in_flight == 1

    run_virtually(go())


def test_waiter_cancelled_as_it_acquires_releases_the_lane():
    async def go():
        lanes = Lanes([Lane(1, None, None, 60.0)])
        first = await lanes.acquire(1)
        waiting = asyncio.create_task(lanes.acquire(1))
        await asyncio.sleep(0)
        lanes.lanes[first].release(1, 1, 0.0)
        lanes.wake()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert lanes.lanes[0].concurrency.in_flight == 0

    run_virtually(go())


def test_learned_limit_only_decreases():
    window = Window(None)
    window.learn(100, None, None, 0.0)
    assert window.limit == 100
    window.learn(500, None, None, 0.0)
    assert window.limit == 100
    window.learn(40, None, None, 0.0)
    assert window.limit == 40


def test_usage_by_others_counts():
    window = Window(100)
    window.learn(100, 30, 20.0, now_s=0.0)
    assert window.used(0.0) == 70
    window.learn(100, 30, 20.0, now_s=1.0)  # the same headers again: usage is not counted twice
    assert window.used(20.5) == 70
    assert window.used(21.0) == 0


def test_usage_by_others_counts_until_reset_and_own_usage_for_a_period():
    """The server's limit per second is used up. Our own request counts for a minute, but must not extend the wait."""
    window = Window(240)
    window.acquire(1, 0.0)
    window.release(1, 1, 0.0)
    window.learn(240, 0, 1.0, now_s=0.0)
    assert window.wait_s(1, 0.5) == 0.5
    assert window.wait_s(1, 1.5) == 0
    assert window.used(1.5) == 1
    assert window.used(60.5) == 0


def test_later_reset_counts():
    window = Window(240)
    window.learn(240, 0, 1.0, now_s=0.0)
    window.learn(240, 0, 5.0, now_s=0.5)
    assert window.wait_s(1, 2.0) == 3.5
    assert window.used(5.5) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60), st.integers(0, 60)), max_size=12))
def test_strictest_valid_header_counts(headers):
    window, now_s, statements = Window(60), 0, []
    for after_s, remaining, reset_s in headers:
        now_s += after_s
        window.learn(60, remaining, reset_s, now_s)
        statements.append((now_s + reset_s, 60 - remaining))
        for later_s in range(now_s, now_s + 61, 7):
            expected = max((amount for until_s, amount in statements if until_s > later_s), default=0)
            assert max((amount for until_s, amount in window._others if until_s > later_s), default=0) == expected
        assert window.used(now_s) == max((amount for until_s, amount in statements if until_s > now_s), default=0)


def test_limits_per_second_in_headers_do_not_stall_the_run():
    """A limit of 240 per minute, enforced per second: of 1,200 possible requests in 300 s, nine tenths pass."""
    second = {"number": -1, "taken": 0}

    async def one(lanes, passed):
        loop = asyncio.get_running_loop()
        index = await lanes.acquire(1)
        await asyncio.sleep(0.02)
        if int(loop.time()) != second["number"]:
            second.update(number=int(loop.time()), taken=0)
        second["taken"] += 1
        passed.append((loop.time(), second["taken"]))
        limits = {"limit": "240", "remaining": str(4 - second["taken"]), "reset": f"{1 - loop.time() % 1:.3f}s"}
        await asyncio.sleep(0.02)
        lane = lanes.lanes[index]
        lane.learn(read_headers({f"x-ratelimit-{name}-requests": text for name, text in limits.items()}), loop.time())
        lane.concurrency.record_success()
        lane.release(1, 1, loop.time())
        lanes.wake()

    async def go():
        lanes, passed = Lanes([Lane(50, None, None, 60.0)]), []
        tasks = [asyncio.create_task(one(lanes, passed)) for _ in range(1300)]
        await asyncio.sleep(300)
        for task in tasks:
            task.cancel()
        return passed

    passed = run_virtually(go())
    assert len(passed) > 0.9 * 1200


def test_higher_remaining_is_ignored():
    window = Window(100)
    window.acquire(10, 0.0)
    window.learn(100, 100, 0.0, now_s=0.0)
    assert window.used(0.0) == 10


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({}, (None, None, None, None)),
        ({"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "0"}, (500, 0, None, None)),
        ({"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-requests": "-1"}, (None, None, None, None)),
        ({"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0"}, (None, None, None, 0)),
        ({"x-ratelimit-limit-requests": "many", "x-ratelimit-limit-tokens": "1e9"}, (None, None, None, None)),
        ({"x-ratelimit-limit-requests": "", "x-ratelimit-remaining-tokens": " 12 "}, (None, None, None, 12)),
        ({"x-ratelimit-limit-requests": "9" * 30}, (None, None, None, None)),
    ],
)
def test_limit_headers(headers, limits):
    read = read_headers(headers)
    assert (read.limit_requests, read.remaining_requests, read.limit_tokens, read.remaining_tokens) == limits


def test_zero_headers_without_a_limit_do_not_block_a_lane():
    """Some gateways send zeros for absent limits. Zero remaining counts only with a reset time."""
    lane = Lane(5, None, None, 60.0)
    lane.learn(read_headers(dict.fromkeys(("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"), "0")), 0.0)
    assert lane.wait_s(10, 0.0) == 0
    lane.learn(read_headers({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "7s"}), 0.0)
    assert lane.wait_s(10, 0.0) == 7


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("1.5", 1.5), ("0", 0), ("0s", 0)]
    + [(bad, None) for bad in ("", "-1", "-1s", "soon", "1d", "1s2", "nan", "inf")],
)
def test_parse_duration(text, seconds):
    assert parse_duration(text) == seconds


def test_retry_after_formats():
    def seconds(**headers):
        return read_headers({name.replace("_", "-"): value for name, value in headers.items()}).retry_after_s

    assert seconds(retry_after="3") == 3
    assert seconds(retry_after="0.5") == 0.5
    assert seconds(retry_after="30", retry_after_ms="250") == 0.25
    date, later = "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:09 GMT"
    assert seconds(retry_after=later, date=date) == 9  # by the server's clock
    assert seconds(retry_after=date, date=later) == 0
    assert seconds(retry_after=email.utils.formatdate(email.utils.mktime_tz((2099, 1, 1, 0, 0, 0, 0, 1, 0, 0)))) > 0
    for bad in ("", "-5", "soon", "nan", "Wed, 99 Oct 2026", "inf"):
        assert seconds(retry_after=bad) is None, bad


def test_concurrency_probes_doubles_halves_and_grows_by_one():
    concurrency = Concurrency(maximum=100, start=16)

    def round_of_answers(count):
        for _ in range(count):
            concurrency.in_flight = int(concurrency.limit)
            assert not concurrency.has_room()
            concurrency.record_success()

    assert concurrency.limit == 1
    round_of_answers(1)
    assert concurrency.limit == 16
    round_of_answers(16)
    assert concurrency.limit == 32
    concurrency.record_overload(sent_s=5.0, now_s=10.0)
    assert concurrency.limit == 16
    concurrency.record_overload(sent_s=9.0, now_s=11.0)  # sent before the last halving: ignored
    assert concurrency.limit == 16
    round_of_answers(16)
    assert concurrency.limit == pytest.approx(17, abs=0.1)
    for now_s in range(20, 40):
        concurrency.record_overload(now_s, now_s + 0.5)
    assert concurrency.limit == 1
    round_of_answers(10_000)
    assert concurrency.limit == 100


def test_concurrency_below_the_limit_does_not_grow():
    concurrency = Concurrency(maximum=100, start=16)
    concurrency.record_success()
    concurrency.in_flight = 3
    assert concurrency.has_room()
    concurrency.record_success()
    assert concurrency.limit == 16


def test_concurrency_doubles_if_answers_arrive_together():
    """All answers of a round have the same latency, so the limit is reached in rounds, not one by one."""

    async def go():
        lanes = Lanes([Lane(2000, None, None, 60.0)])
        loop = asyncio.get_running_loop()

        async def one():
            index = await lanes.acquire(1)
            await asyncio.sleep(2.0)
            lanes.lanes[index].concurrency.record_success()
            lanes.lanes[index].release(1, 1, loop.time())
            lanes.wake()

        await asyncio.gather(*(one() for _ in range(6000)))
        return loop.time(), lanes.lanes[0].concurrency.limit

    seconds, limit = run_virtually(go())
    assert limit == 2000
    assert seconds <= 24  # 1, 16, 32, ... 1024, 2000, and the rest
