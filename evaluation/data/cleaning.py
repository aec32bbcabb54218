"""Cleaning of benchmark texts, as the protocols that came before do it."""

from __future__ import annotations

import re

_BRACKETED = re.compile(r"\[.*?\]")


def clean(text: str) -> str:
    """Without WikiHow's marks: " [title]" becomes a stop, other brackets go with what they hold, two blanks become one.

    Made for HellaSwag. lm-eval applies it to ARC and TruthfulQA too, where "[H2O]" is chemistry and goes as well.
    """
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETED.sub("", text).replace("  ", " ")
