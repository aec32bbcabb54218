"""Known models by name: list prices and supported request parameters."""

from __future__ import annotations

import re
from typing import NamedTuple


class Price(NamedTuple):
    """US dollars per million tokens."""

    prompt: float
    completion: float

    def usd(self, tokens: tuple[int, int]) -> float:
        """Return the cost of (prompt, completion) tokens in US dollars."""
        return (self.prompt * tokens[0] + self.completion * tokens[1]) / 1e6


class KnownModel(NamedTuple):
    """OpenAI's list price of a model, without batch or cache discounts, and its request parameters.

    takes_temperature   False: the API refuses a request with a temperature
    max_tokens_field    the request field for the answer's token limit
    """

    price: Price
    takes_temperature: bool = True
    max_tokens_field: str = "max_tokens"


# Prices change: --price-in and --price-out override them.
MODELS = {
    "gpt-3.5-turbo": KnownModel(Price(0.50, 1.50)),
    "gpt-4-turbo": KnownModel(Price(10.0, 30.0)),
    "gpt-4o": KnownModel(Price(2.50, 10.0)),
    "gpt-4o-mini": KnownModel(Price(0.15, 0.60)),
    "gpt-4.1": KnownModel(Price(2.0, 8.0)),
    "gpt-4.1-mini": KnownModel(Price(0.40, 1.60)),
    "gpt-4.1-nano": KnownModel(Price(0.10, 0.40)),
    "gpt-5": KnownModel(Price(1.25, 10.0), takes_temperature=False, max_tokens_field="max_completion_tokens"),
    "gpt-5-mini": KnownModel(Price(0.25, 2.0), takes_temperature=False, max_tokens_field="max_completion_tokens"),
    "gpt-5-nano": KnownModel(Price(0.05, 0.40), takes_temperature=False, max_tokens_field="max_completion_tokens"),
}


def parameters_of(name: str) -> KnownModel | None:
    """Return the entry of a model, ignoring a snapshot date in its name, or None.

    Do not use the entry's price: the price of a snapshot may differ.
    """
    return MODELS.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", name))
