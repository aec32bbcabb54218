"""Log-probabilities of given tokens and of the likeliest ones, from rows of logits.

Shapes: S rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class TokenScore(NamedTuple):
    """A token's log-probability in nats at temperature 1; `top` has the likeliest tokens with theirs, in order."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def score_tokens(logits_SV: Tensor, token_S: Tensor, num_top: Sequence[int]) -> list[TokenScore]:
    """Return one score per row: of token_S (int64 [S]) under the logits (float [S, V]), with the num_top likeliest."""
    logprob_SV = logits_SV.float().log_softmax(-1)
    chosen = logprob_SV.gather(1, token_S[:, None])[:, 0].tolist()
    top = logprob_SV.topk(min(max(num_top), logprob_SV.shape[1]), sorted=True)
    return [
        TokenScore(token, logprob, tuple(zip(ids[:n], logprobs[:n])))
        for token, logprob, ids, logprobs, n in zip(
            token_S.tolist(), chosen, top.indices.tolist(), top.values.tolist(), num_top
        )
    ]
