"""Clean benchmark texts by the rule of lm-eval and mlmm-evaluation."""

from __future__ import annotations

import re

_BRACKETED = re.compile(r"\[.*?\]")


def clean(text: str) -> str:
    """Return the text without WikiHow's marks.

    Strip it, replace " [title]" by ". ", delete brackets with their content, then replace two spaces by one. The rule
    was made for HellaSwag. lm-eval applies it to ARC and TruthfulQA too, where it also deletes chemistry such as
    "[H2O]".
    """
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETED.sub("", text).replace("  ", " ")
