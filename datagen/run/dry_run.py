"""--dry-run: estimate requests, tokens, cost and hours for each language, without sending a request.

The work function runs on the simulator's answers, so dialogs take all their turns. Answers in the journal are used and
not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datagen.api.chat import Message, Record, Rejected, Reply, Work
from datagen.api.journal import Journal
from datagen.api.known_models import Price
from datagen.api.pricing import estimate_prompt_tokens, estimate_tokens, price_of, token_bound
from datagen.api.settings import ApiSettings
from datagen.simulate.answers import simulated_answer

_ASSUMED_TOKENS_PER_S = 40.0  # per answer; large models reach 30 to 100
_ASSUMED_FIRST_TOKEN_S = 1.0


@dataclass
class Plan:
    """The requests of one group of records. Token counts are estimates (see pricing.estimate_tokens)."""

    records: int = 0
    requests: int = 0
    journaled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_bound: int = 0
    completion_bound: int = 0

    def add(self, other: Plan) -> None:
        """Add another group's numbers to this plan."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


async def make_plans(
    records: Iterable[Record], work: Work, settings: ApiSettings, journal: Path, group_of: Callable[[Record], str]
) -> dict[str, Plan]:
    """Return a plan for each group, in order of first appearance."""
    plans: dict[str, Plan] = defaultdict(Plan)
    known = Journal(journal) if journal.exists() else None
    planned: dict[bytes, Reply] = {}

    def asker(plan: Plan) -> Callable[..., Any]:
        async def ask(messages: Sequence[Message], nonce: Any = None, **params: Any) -> Reply:
            request = settings.request(messages, nonce, **params)
            key = request.key
            if known is not None and (reply := known.answer(key)):
                plan.journaled += 1
                return reply
            if key not in planned:
                text = simulated_answer(request.messages)
                tokens = estimate_prompt_tokens(request.messages), min(estimate_tokens(text), request.max_tokens)
                planned[key] = Reply(text, "stop", *tokens)
                plan.requests += 1
                plan.prompt_tokens += tokens[0]
                plan.completion_tokens += tokens[1]
                bound = token_bound(request)
                plan.prompt_bound += bound.prompt
                plan.completion_bound += bound.completion
            return planned[key]

        return ask

    try:
        for record in records:
            plan = plans[group_of(record)]
            plan.records += 1
            # Requests count even if the work function rejects the simulator's answer.
            with contextlib.suppress(Rejected):
                await work(record, asker(plan))
    finally:
        if known is not None:
            known.release()
    return dict(plans)


def hours(plan: Plan, settings: ApiSettings) -> float:
    """Return the hours the requests take under the rate limits or the concurrency, whichever is slower."""
    tokens = plan.prompt_tokens + plan.completion_tokens
    keys = len(settings.base_urls)
    answer_s = _ASSUMED_FIRST_TOKEN_S * plan.requests + plan.completion_tokens / _ASSUMED_TOKENS_PER_S
    minutes = [answer_s / 60 / min(settings.concurrency * keys, max(plan.requests, 1))]
    if settings.requests_per_min:
        minutes.append(plan.requests / settings.requests_per_min / keys)
    if settings.tokens_per_min:
        minutes.append(tokens / settings.tokens_per_min / keys)
    return max(minutes) / 60


def print_plan(
    records: Iterable[Record], work: Work, settings: ApiSettings, journal: Path, group_of: Callable[[Record], str]
) -> None:
    """Print the table of --dry-run."""
    plans = asyncio.run(make_plans(records, work, settings, journal, group_of))
    if len(plans) != 1:
        total = Plan()
        for plan in plans.values():
            total.add(plan)
        plans["total"] = total
    head = ("", "records", "in journal", "requests", "prompt tok.", "answer tok.", "USD", "USD at most", "hours")
    price = price_of(settings)
    for cells in [head, *(_cells(name, plan, settings, price) for name, plan in plans.items())]:
        print(f"{cells[0]:<10}" + "".join(f"{cell:>13}" for cell in cells[1:]))
    if price is None:
        print(f"unknown price for {settings.model}: pass --price-in and --price-out")


def _cells(name: str, plan: Plan, settings: ApiSettings, price: Price | None) -> tuple[str, ...]:
    counts = (plan.records, plan.journaled, plan.requests, plan.prompt_tokens, plan.completion_tokens)
    costs = ((plan.prompt_tokens, plan.completion_tokens), (plan.prompt_bound, plan.completion_bound))
    usd = ["?", "?"] if price is None else [f"{price.usd(tokens):,.4f}" for tokens in costs]
    return (name, *(f"{count:,}" for count in counts), *usd, f"{hours(plan, settings):.2f}")
