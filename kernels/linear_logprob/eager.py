"""The passes over a tile of logits in plain PyTorch: any device, any processor, and the words to read passes.h by.

B rows of the vocabulary, T tokens. What is kept of a token, in float64, is a row each of kept_6T: the maximum m,
s = sum e^(z-m), q = sum e^(z-m) (z-m), and with a reference its maximum, its sum, and u = sum e^(z-m) (z - z_ref).
"""

from __future__ import annotations

import torch
from torch import Tensor

KEPT = 6
PARTS = 1  # of the kept totals, to be merged at the end


def nothing_kept(parts: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """kept_P6T of no tile, and found_3T, for the targets' logits: the policy's, the reference's, the difference."""
    kept_P6T = torch.zeros(parts, KEPT, tokens, dtype=torch.float64, device=device)
    kept_P6T[:, [0, 3]] = torch.finfo(torch.float32).min  # finite, because -inf - -inf is NaN
    return kept_P6T, torch.zeros(3, tokens, dtype=torch.float64, device=device)


def statistics(
    z_BT: Tensor,
    ref_BT: Tensor | None,
    bias_B: Tensor | None,
    scale: float,
    kept_P6T: Tensor,
    target_T: Tensor,
    first_id: int,
    found_3T: Tensor,
) -> None:
    """Adds a tile whose first row is vocabulary entry `first_id` to what is kept; finds the targets among its rows."""
    (kept_6T,) = kept_P6T
    here_T = (target_T >= first_id) & (target_T < first_id + len(z_BT))
    row_1T = (target_T - first_id).clamp(0, len(z_BT) - 1)[None]

    def logits(tile_BT: Tensor, found_T: Tensor) -> tuple[Tensor, Tensor]:
        """Tempered, and less their maximum, which is finite; the targets' among them are written to found_T."""
        z = tile_BT * scale if bias_B is None else tile_BT * scale + bias_B[:, None] * scale
        found_T.copy_(torch.where(here_T, z.gather(0, row_1T)[0].double(), found_T))
        m = z.amax(0).clamp(min=torch.finfo(torch.float32).min)
        return m, (z - m).nan_to_num(nan=float("nan"), neginf=-1e4)

    part = torch.zeros_like(kept_6T)
    part[0], below = logits(z_BT, found_3T[0])
    e = below.exp()
    part[1], part[2] = e.sum(0, dtype=torch.float64), (e * below).sum(0, dtype=torch.float64)
    part[3] = kept_6T[3]
    if ref_BT is not None:
        part[3], ref_below = logits(ref_BT, found_3T[1])
        part[4] = ref_below.exp().sum(0, dtype=torch.float64)
        apart = (z_BT - ref_BT) * scale
        part[5] = (e * apart).sum(0, dtype=torch.float64)
        found_3T[2] = torch.where(here_T, apart.gather(0, row_1T)[0].double(), found_3T[2])
    kept_6T.copy_(merged(torch.stack([kept_6T, part])))


def merged(kept_P6T: Tensor) -> Tensor:
    """[6, T]: the totals of several parts, each brought to the largest maximum of them."""
    m, s, q, ref_m, ref_s, u = kept_P6T.unbind(1)
    top, ref_top = m.amax(0), ref_m.amax(0)
    shrink = (m - top).exp()
    total = torch.stack([s * shrink, (q + s * (m - top)) * shrink, ref_s * (ref_m - ref_top).exp(), u * shrink]).sum(1)
    return torch.stack([top, total[0], total[1], ref_top, total[2], total[3]])


def gradient(
    z_BT: Tensor,
    ref_BT: Tensor | None,
    bias_B: Tensor | None,
    scale: float,
    per_token_6T: Tensor,
    target_T: Tensor,
    first_id: int,
    target_dz_T: Tensor,
) -> None:
    """Replaces a tile by p (a + b log p + c (log p - log p_ref)), and its targets by target_dz_T.

    The rows of per_token_6T: the logsumexp in two parts (a maximum and the rest), a, b, c, and the difference of the
    two logsumexps, policy's less reference's.
    """
    top, log_sum, a, b, c, apart = per_token_6T
    logprob = z_BT * scale - top if bias_B is None else z_BT * scale + bias_B[:, None] * scale - top
    logprob = (logprob - log_sum).nan_to_num(nan=float("nan"), neginf=-1e4)
    weight = a + b * logprob
    if ref_BT is not None:
        weight += c * ((z_BT - ref_BT) * scale - apart)
    torch.mul(logprob.exp(), weight, out=z_BT)
    here_T = (target_T >= first_id) & (target_T < first_id + len(z_BT))
    row_1T = (target_T - first_id).clamp(0, len(z_BT) - 1)[None]
    z_BT.scatter_(0, row_1T, torch.where(here_T, target_dz_T, z_BT.gather(0, row_1T)[0])[None])
