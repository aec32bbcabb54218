"""The passes over a tile of logits in plain PyTorch: any device, any processor, and the words to read cpu.cpp by.

B rows of the vocabulary, T tokens. What is kept of a token, in float64, is a row each of kept_6T: the maximum m,
s = sum e^(z-m), q = sum e^(z-m) (z-m), and with a reference its maximum, its sum, and u = sum e^(z-m) (z - z_ref).
"""

from __future__ import annotations

import torch
from torch import Tensor

KEPT = 6
PARTS = 1  # of the kept totals, to be merged at the end


def statistics(
    z_BT: Tensor,
    ref_BT: Tensor | None,
    bias_B: Tensor | None,
    scale: float,
    kept_P6T: Tensor,
    target_T: Tensor,
    first_id: int,
    target_logit_2T: Tensor,
) -> None:
    """Adds a tile whose first row is vocabulary entry `first_id` to what is kept.

    Writes what the tile holds for the targets among its rows to target_logit_2T: the policy's and the reference's.
    """
    (kept_6T,) = kept_P6T
    x = z_BT.float() * scale
    z = x if bias_B is None else x + bias_B[:, None] * scale
    here = (target_T >= first_id) & (target_T < first_id + len(z))
    row_T = (target_T - first_id).clamp(0, len(z) - 1)
    target_logit_2T[0] = torch.where(here, z.gather(0, row_T[None])[0].double(), target_logit_2T[0])
    m = z.amax(0).clamp(min=torch.finfo(torch.float32).min)
    below = (z - m).nan_to_num(nan=float("nan"), neginf=-1e4)
    e = below.exp()
    part = torch.zeros_like(kept_6T)
    part[0], part[1], part[2] = m, e.sum(0, dtype=torch.float64), (e * below).sum(0, dtype=torch.float64)
    if ref_BT is not None:
        y = ref_BT.float() * scale
        part[5] = (e * (x - y)).sum(0, dtype=torch.float64)
        y = y if bias_B is None else y + bias_B[:, None] * scale
        target_logit_2T[1] = torch.where(here, y.gather(0, row_T[None])[0].double(), target_logit_2T[1])
        part[3] = y.amax(0).clamp(min=torch.finfo(torch.float32).min)
        part[4] = (y - part[3].float()).exp().sum(0, dtype=torch.float64)
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
    x = z_BT.float() * scale
    logprob = x - top if bias_B is None else x + bias_B[:, None] * scale - top
    logprob = (logprob - log_sum).nan_to_num(nan=float("nan"), neginf=-1e4)
    weight = a + b * logprob
    if ref_BT is not None:
        weight += c * (x - ref_BT.float() * scale - apart)
    dz = logprob.exp_().mul_(weight)
    here = (target_T >= first_id) & (target_T < first_id + len(dz))
    row_T = (target_T - first_id).clamp(0, len(dz) - 1)[None]
    dz.scatter_(0, row_T, torch.where(here, target_dz_T, dz.gather(0, row_T)[0])[None])
    z_BT.copy_(dz)
