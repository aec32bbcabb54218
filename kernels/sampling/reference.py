"""The specification of sampling: which tokens are kept and which is chosen, in float64, one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_reference(score_V: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Return bool [V], True for tokens that `kernels.sampling.sample_rows` keeps. Scores include the temperature."""
    share_V = score_V.double().softmax(-1)
    # Compare with larger scores only, so that equal scores are kept or removed together.
    above_VV = score_V[None, :] > score_V[:, None]
    kept_V = above_VV.sum(-1) < (top_k or len(score_V))
    left_V = share_V * kept_V / (share_V * kept_V).sum()
    if top_p < 1:
        kept_V = kept_V & ((above_VV * left_V).sum(-1) < top_p)
    return kept_V & (share_V >= min_p * share_V.max())


def token_reference(score_V: Tensor, kept_V: Tensor, uniform: float) -> int:
    """Return the first token in vocabulary order whose cumulative share of the kept tokens exceeds `uniform`."""
    cumulative_V = (score_V.double().softmax(-1) * kept_V).cumsum(-1)
    return int(torch.nonzero(cumulative_V > uniform * cumulative_V[-1])[0])
