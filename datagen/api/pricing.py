"""What requests cost: prices, estimates and bounds of token counts, and the budget that is never passed."""

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
    """The price by the flags, else of the table, else None."""
    known = MODELS.get(settings.model)
    prompt, completion = settings.usd_per_m_prompt, settings.usd_per_m_completion
    if prompt is None:
        prompt = known and known.price.prompt
    if completion is None:
        completion = known and known.price.completion
    return None if prompt is None or completion is None else Price(prompt, completion)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is: 4 ASCII characters a token, 3 bytes of any other script.

    An order of magnitude for planning (newer vocabularies need fewer for Indic scripts); nothing is limited by it.
    """
    if text.isascii():
        return -(-len(text) // 4)
    ascii_characters = len(text.encode("ascii", "ignore"))
    return -(-ascii_characters // 4) + -(-(len(text.encode("utf-8", "replace")) - ascii_characters) // 3)


def estimate_prompt_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens a request's messages are."""
    return 3 + sum(4 + estimate_tokens(message["content"]) for message in messages)


def token_bound(request: Request) -> Tokens:
    """The most tokens a request can cost: byte-level vocabularies give no text more tokens than it has bytes."""
    sizes = (len(message["content"].encode("utf-8", "replace")) for message in request.messages)
    prompt = _TOKENS_PER_REQUEST + sum(size + _TOKENS_PER_MESSAGE for size in sizes)
    return Tokens(prompt, request.max_tokens)


class Ledger:
    """Counts what was spent, and lets no request leave that could pass the budget.

    Counted against the budget are what the journal says was paid, by earlier runs too, the bounds of the attempts on
    their way, and the bounds of those whose end is unknown.
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
        self._on_their_way = 0
        self._held_usd = 0.0
        self._changed = asyncio.Event()

    @property
    def spent_usd(self) -> float:
        """What was surely paid."""
        return self.price.usd(self._journal.paid)

    @property
    def maybe_spent_usd(self) -> float:
        """The most that attempts without a known end may have cost besides."""
        return self._unsettled_usd

    async def hold(self, bound: Tokens) -> None:
        """Sets the bound of one attempt aside; waits where only attempts on their way stand against it.

        UserError where the budget does not suffice.
        """
        usd = self.price.usd(bound)
        while self.budget_usd is not None:
            committed = self.spent_usd + self._unsettled_usd + self._held_usd
            if committed + usd <= self.budget_usd:
                break
            if not self._on_their_way:
                raise UserError(self._exhausted(usd))
            self._changed.clear()
            await self._changed.wait()
        self._on_their_way += 1
        self._held_usd += usd

    def release(self, bound: Tokens) -> None:
        """Gives back what `hold` set aside, once the attempt is settled or was not sent."""
        self._on_their_way -= 1
        self._held_usd = self._held_usd - self.price.usd(bound) if self._on_their_way else 0.0
        self._changed.set()

    def lost(self, bound: Tokens) -> None:
        """Counts an attempt that may have been charged, though no answer came."""
        self._unsettled_usd += self.price.usd(bound)

    def _exhausted(self, usd: float) -> str:
        maybe = f", ${self._unsettled_usd:.4f} perhaps for answers that never came" if self._unsettled_usd else ""
        return (
            f"--budget ${self.budget_usd:.4f} reached: ${self.spent_usd:.4f} spent{maybe}, the next request may cost "
            f"${usd:.4f}: raise it and run again to go on"
        )
