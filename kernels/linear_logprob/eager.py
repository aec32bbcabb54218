"""The passes over a tile of logits in plain PyTorch, for any device. Read this before passes.h, which does the same.

Shapes: B rows of the vocabulary, T tokens. Per token there are three float64 totals over the vocabulary, the rows of
totals_3T: the maximum m, s = sum e^(z-m), and q = sum e^(z-m) (z-m).
"""

from __future__ import annotations

import torch
from torch import Tensor

TOTALS = 3
PARTS = 1  # separate totals that `statistics` adds to; `merge` joins them at the end


def empty_totals(parts: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return totals_P3T of no tile, and room for the targets' logits [T]: float64 both."""
    totals_P3T = torch.zeros(parts, TOTALS, tokens, dtype=torch.float64, device=device)
    totals_P3T[:, 0] = torch.finfo(torch.float32).min  # finite: -inf - -inf would be NaN
    return totals_P3T, torch.zeros(tokens, dtype=torch.float64, device=device)


def statistics(
    z_BT: Tensor, scale: float, totals_P3T: Tensor, target_T: Tensor, first_id: int, target_logit_T: Tensor
) -> None:
    """Add a tile of logits before temperature to the totals. Write the logits of the targets that lie in the tile.

    Row 0 of the tile is vocabulary entry `first_id`; scale is 1 / temperature.
    """
    (totals_3T,) = totals_P3T
    here_T = (target_T >= first_id) & (target_T < first_id + len(z_BT))
    row_1T = (target_T - first_id).clamp(0, len(z_BT) - 1)[None]
    z = z_BT * scale
    target_logit_T.copy_(torch.where(here_T, z.gather(0, row_1T)[0].double(), target_logit_T))
    tile_3T = torch.zeros_like(totals_3T)
    tile_3T[0] = m = z.amax(0).clamp(min=torch.finfo(torch.float32).min)
    below = (z - m).nan_to_num(nan=float("nan"), neginf=-1e4)
    e = below.exp()
    tile_3T[1], tile_3T[2] = e.sum(0, dtype=torch.float64), (e * below).sum(0, dtype=torch.float64)
    totals_3T.copy_(merge(torch.stack([totals_3T, tile_3T])))


def merge(totals_P3T: Tensor) -> Tensor:
    """Return [3, T]: the totals of several parts as one, all relative to the largest maximum."""
    m, s, q = totals_P3T.unbind(1)
    top = m.amax(0)
    shrink = (m - top).exp()
    total = torch.stack([s * shrink, (q + s * (m - top)) * shrink]).sum(1)
    return torch.stack([top, total[0], total[1]])


def gradient(
    z_BT: Tensor, scale: float, per_token_4T: Tensor, target_T: Tensor, first_id: int, target_dz_T: Tensor
) -> None:
    """Replace each logit of a tile by p (a + b log p), and those of targets by target_dz_T.

    The rows of per_token_4T: the logsumexp in two parts (a maximum and the rest), a and b.
    """
    top, log_sum, a, b = per_token_4T
    logprob = (z_BT * scale - top - log_sum).nan_to_num(nan=float("nan"), neginf=-1e4)
    torch.mul(logprob.exp(), a + b * logprob, out=z_BT)
    here_T = (target_T >= first_id) & (target_T < first_id + len(z_BT))
    row_1T = (target_T - first_id).clamp(0, len(z_BT) - 1)[None]
    z_BT.scatter_(0, row_1T, torch.where(here_T, target_dz_T, z_BT.gather(0, row_1T)[0])[None])
