"""The cost of requests: prices, token estimates and bounds, and a budget that is never exceeded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from datagen.api.chat import Message, Request
from datagen.api.journal import Journal, Tokens
from datagen.api.known_models import MODELS, Price
from datagen.api.settings import ApiSettings
from engine.base.errors import UserError

_TOKENS_PER_MESSAGE = 8  # role and delimiters; OpenAI's chat format takes 3 or 4
_TOKENS_PER_REQUEST = 16


def price_of(settings: ApiSettings) -> Price | None:
    """Return the price from the settings, else from the price table, else None."""
    known = MODELS.get(settings.model)
    prompt, completion = settings.usd_per_m_prompt, settings.usd_per_m_completion
    if prompt is None:
        prompt = known and known.price.prompt
    if completion is None:
        completion = known and known.price.completion
    return None if prompt is None or completion is None else Price(prompt, completion)


def estimate_tokens(text: str) -> int:
    """Estimate the token count of a text: one token per 4 ASCII characters or per 3 bytes of other scripts.

    This is an order of magnitude for planning, never a limit. Newer vocabularies need fewer tokens for Indic scripts.
    """
    if text.isascii():
        return -(-len(text) // 4)
    ascii_characters = len(text.encode("ascii", "ignore"))
    return -(-ascii_characters // 4) + -(-(len(text.encode("utf-8", "replace")) - ascii_characters) // 3)


def estimate_prompt_tokens(messages: Sequence[Message]) -> int:
    """Estimate the token count of a request's messages."""
    return 3 + sum(4 + estimate_tokens(message["content"]) for message in messages)


def token_bound(request: Request) -> Tokens:
    """Return an upper bound on a request's tokens. In byte-level vocabularies a text has at most one token per byte."""
    sizes = (len(message["content"].encode("utf-8", "replace")) for message in request.messages)
    prompt = _TOKENS_PER_REQUEST + sum(size + _TOKENS_PER_MESSAGE for size in sizes)
    return Tokens(prompt, request.max_tokens)


class Ledger:
    """Tracks spending and blocks every request that could exceed the budget.

    Three amounts count against the budget: payments in the journal (earlier runs included), the cost bounds of attempts
    in flight, and the cost bounds of attempts with an unknown end.
    """

    def __init__(self, settings: ApiSettings, journal: Journal) -> None:
        """UserError for a budget without a price."""
        price = price_of(settings)
        self.budget_usd = settings.budget_usd
        if price is None and self.budget_usd is not None:
            raise UserError(f"--budget needs the price of {settings.model}: give --price-in and --price-out")
        self.is_priced = price is not None
        self.price = price or Price(0.0, 0.0)
        self._journal = journal
        self._unsettled_usd = sum(map(self.price.usd, journal.unsettled.values()))
        self._in_flight = 0
        self._reserved_usd = 0.0
        self._changed = asyncio.Event()

    @property
    def spent_usd(self) -> float:
        """US dollars paid for certain."""
        return self.price.usd(self._journal.paid)

    @property
    def maybe_spent_usd(self) -> float:
        """Upper bound, in US dollars, on the cost of attempts with an unknown end. Not part of spent_usd."""
        return self._unsettled_usd

    async def reserve(self, bound: Tokens) -> None:
        """Reserve the cost bound of one attempt. Waits while attempts in flight may still free enough budget.

        UserError if the remaining budget is too small.
        """
        usd = self.price.usd(bound)
        while self.budget_usd is not None:
            committed = self.spent_usd + self._unsettled_usd + self._reserved_usd
            if committed + usd <= self.budget_usd:
                break
            if not self._in_flight:
                raise UserError(self._exhausted_message(usd))
            self._changed.clear()
            await self._changed.wait()
        self._in_flight += 1
        self._reserved_usd += usd

    def release(self, bound: Tokens) -> None:
        """Release a reservation, once the attempt is settled or was not sent."""
        self._in_flight -= 1
        self._reserved_usd = self._reserved_usd - self.price.usd(bound) if self._in_flight else 0.0
        self._changed.set()

    def add_unsettled(self, bound: Tokens) -> None:
        """Count an attempt that got no answer but may have been charged."""
        self._unsettled_usd += self.price.usd(bound)

    def _exhausted_message(self, usd: float) -> str:
        maybe = f", up to ${self._unsettled_usd:.4f} more for lost answers" if self._unsettled_usd else ""
        return (
            f"--budget ${self.budget_usd:.4f} reached: ${self.spent_usd:.4f} spent{maybe}, the next request may cost "
            f"${usd:.4f}: raise it and run again to continue"
        )
