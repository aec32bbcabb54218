"""The ranking format: the order in which responses are shown, and the line with which the judge ranks them.

    B > A = D > C

Each response is named once; ">" means better than, "=" means as good as. Any other form is an error. Nothing is fixed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from string import ascii_uppercase

from datagen.api.chat import content_hash

MAX_RESPONSES = len(ascii_uppercase)
_LINE = re.compile(r"[A-Z](?:\s*[>=]\s*[A-Z])*")


def show_order(instruction: str, input: str, responses: Sequence[str], seed: int) -> list[int]:
    """Return the indices of the distinct responses (first occurrences), in the order shown: A, B, ...

    The order is a shuffle that depends on the seed and the content only, so over many records no position is favoured.
    """
    distinct = [k for k, response in enumerate(responses) if response not in responses[:k]]
    Random(content_hash([seed, instruction, input, list(responses)])).shuffle(distinct)
    return distinct


def labels(count: int) -> list[str]:
    """Return the labels of `count` responses: A, B, ..."""
    return list(ascii_uppercase[:count])


def parse_ranking(text: str, count: int) -> list[int]:
    """Return the ranks of A, B, ...: 1 is best, ties are equal. "B > A = D > C" gives [2, 1, 3, 2].

    ValueError, in one line, for any other form and for a response that is missing, unknown or named twice.
    """
    line = text.strip()
    if not _LINE.fullmatch(line) or "\n" in line:
        raise ValueError(f"not of the form A > B = C: {line!r:.60}")
    groups = [re.findall("[A-Z]", group) for group in line.split(">")]
    named = [name for group in groups for name in group]
    expected = labels(count)
    if twice := [name for name in named if named.count(name) > 1]:
        raise ValueError(f"{twice[0]} is named twice")
    if unknown := [name for name in named if name not in expected]:
        raise ValueError(f"there is no response {unknown[0]}")
    if missing := [name for name in expected if name not in named]:
        raise ValueError(f"{missing[0]} is missing")
    rank_of = {name: rank for rank, group in enumerate(groups, 1) for name in group}
    return [rank_of[name] for name in expected]


def ranks_of_responses(shown: Sequence[int], ranks: Sequence[int], responses: Sequence[str]) -> list[int]:
    """Return the ranks of all responses, in their own order, from the ranks of those shown. Identical responses tie."""
    rank_of = {responses[k]: rank for k, rank in zip(shown, ranks)}
    return [rank_of[response] for response in responses]
