"""The specification of what sampling keeps: float64, one sorted row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_reference(score_V: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """bool [V]: the tokens kept, as `kernels.sampling.sample_rows` defines them, of scores already tempered."""
    share_V = score_V.double().softmax(-1)
    # Tokens of one score stand or fall together: each is judged by those above it.
    above_VV = score_V[None, :] > score_V[:, None]
    kept_V = above_VV.sum(-1) < (top_k or len(score_V))
    left_V = share_V * kept_V / (share_V * kept_V).sum()
    if top_p < 1:
        kept_V = kept_V & ((above_VV * left_V).sum(-1) < top_p)
    return kept_V & (share_V >= min_p * share_V.max())


def token_reference(score_V: Tensor, kept_V: Tensor, uniform: float) -> int:
    """The first kept token, in the vocabulary's order, whose cumulative share of what is kept passes `uniform`."""
    cumulative_V = (score_V.double().softmax(-1) * kept_V).cumsum(-1)
    return int(torch.nonzero(cumulative_V > uniform * cumulative_V[-1])[0])
