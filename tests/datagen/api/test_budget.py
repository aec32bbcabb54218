"""The budget: never exceeded, well used; earlier runs and lost answers count."""

from __future__ import annotations

import asyncio

import pytest

from datagen.api.chat import make_request
from datagen.api.journal import Journal
from datagen.api.pricing import estimate_tokens, token_bound
from datagen.simulate import Simulator
from engine.base.errors import UserError
from tests.datagen.api.api_helpers import ask_once, echo, numbers, quick_settings, read_lines, run_in

BUDGET_PRICES = {"usd_per_m_prompt": 1e6, "usd_per_m_completion": 1e6}  # a dollar a token


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", "sk-test")
    monkeypatch.setenv("no_proxy", "*")


def cost(n):
    """Return the cost of one `ask_once` as the simulator counts it, and its upper bound, at one dollar per token."""
    request = make_request("gpt-4o-mini", 64, [{"role": "user", "content": f"say {n}"}])
    answer = echo(request.messages)
    return 3 + 4 + estimate_tokens(f"say {n}") + estimate_tokens(answer), sum(token_bound(request))


@pytest.mark.parametrize("concurrency", [1, 8])
def test_budget_is_used_but_never_exceeded(tmp_path, concurrency):
    one, most = cost(0)
    budget = 7.5 * one + most

    async def go():
        async with Simulator(answer=echo, latency_s=0.002) as server:
            settings = quick_settings(server.url, budget_usd=budget, concurrency=concurrency, **BUDGET_PRICES)
            first = await run_in(tmp_path, numbers(10), ask_once, settings)
            assert f"--budget ${budget:.4f} reached" in first.stopped
            assert first.usd <= budget and first.asked == 8 == len(read_lines(tmp_path / "out.jsonl"))
            again = await run_in(tmp_path, numbers(10), ask_once, settings)  # earlier runs count against the budget
            assert again.asked == 0 and "reached" in again.stopped
            raised = quick_settings(server.url, budget_usd=2 * budget, **BUDGET_PRICES)
            assert (await run_in(tmp_path, numbers(10), ask_once, raised)).asked == 2

    asyncio.run(go())


def test_lost_answers_count_against_the_budget(tmp_path):
    """Every answer is lost in transit. The budget stops the run although no payment is certain."""
    _, most = cost(0)

    async def go():
        async with Simulator(answer=echo, faults={"reset_half": 1.0}) as server:
            changes = {"budget_usd": 3.5 * most, "concurrency": 1, "max_attempts": 30}
            settings = quick_settings(server.url, **changes, **BUDGET_PRICES)
            summary = await run_in(tmp_path, numbers(1), ask_once, settings)
            assert server.counts.requests == 3
            assert summary.usd == 0 and summary.maybe_usd == pytest.approx(3 * most)
            assert "more for lost answers" in summary.stopped

    asyncio.run(go())


def test_budget_needs_a_price(tmp_path):
    settings = quick_settings("http://127.0.0.1:9/v1", model="own-model", budget_usd=1.0)
    with pytest.raises(UserError, match="--budget needs the price of own-model"):
        asyncio.run(run_in(tmp_path, numbers(1), ask_once, settings))
    Journal(tmp_path / "journal").release()  # succeeds only if the lock was released
