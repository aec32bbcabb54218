"""Problems for sampling: logits with and without ties, and the tokens that the definition allows."""

import torch

from kernels.sampling import kept_reference
from kernels.sampling.reference import token_reference

HAIR = 1e-5  # how far a share may be off by rounding


def logits_of(rows, vocabulary, spread, grid, seed):
    """Rows of normal scores; a grid makes ties, many where it is coarse."""
    x = spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    return (x / grid).round() * grid if grid else x


def possible_tokens(score_V, top_k, top_p, min_p, uniform):
    """bool [V]: the tokens that the definition gives when its numbers are a hair off."""
    found_V = torch.zeros(len(score_V), dtype=torch.bool)
    for p in {top_p, top_p * (1 - HAIR), min(top_p * (1 + HAIR), 1.0)} if top_p < 1 else {1.0}:
        for least in {min_p, min_p * (1 - HAIR), min(min_p * (1 + HAIR), 1.0)}:
            kept_V = kept_reference(score_V, top_k, p, least)
            found_V[token_reference(score_V, kept_V, uniform)] = True
            share_V = score_V.double().masked_fill(~kept_V, -torch.inf).softmax(-1)
            until_V = share_V.cumsum(-1)
            found_V |= kept_V & (until_V - share_V <= uniform + HAIR) & (until_V >= uniform - HAIR)
    return found_V
