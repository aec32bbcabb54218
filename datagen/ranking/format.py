"""Rankings as a model is asked for them and answers: which response is shown where, and the line that orders them.

    B > A = D > C

Every response shown is named once; ">" is better than, "=" as good as. Anything else is an error, never mended.
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
    """The distinct responses (each by its first place) in the order in which they are shown: A, B, ...

    The order depends on the seed and the content alone, so that no place is favoured over the records.
    """
    distinct = [k for k, response in enumerate(responses) if response not in responses[:k]]
    Random(content_hash([seed, instruction, input, list(responses)])).shuffle(distinct)
    return distinct


def labels(count: int) -> list[str]:
    """A, B, ... for so many responses."""
    return list(ascii_uppercase[:count])


def parse_ranking(text: str, count: int) -> list[int]:
    """Ranks of A, B, ..., 1 the best, equal for ties: "B > A = D > C" is [2, 1, 3, 2].

    ValueError, in one line, for any other form, and for a response that is missing, unknown or named twice.
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
    """The ranks of all responses, in their own order, from those of the ones shown; identical responses tie."""
    rank_of = {responses[k]: rank for k, rank in zip(shown, ranks)}
    return [rank_of[response] for response in responses]
